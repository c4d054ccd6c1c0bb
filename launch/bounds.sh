#!/usr/bin/env bash
# Runs the tests on the oldest or the newest versions that pyproject.toml allows, in an environment of its own:
#
#     ./launch/bounds.sh lowest|newest PYTHON [arguments of pytest]
#
# "lowest" is every direct dependency at its lower bound, "newest" whatever the package index has; constraints.txt is
# not used. PYTHON is an interpreter, such as python3.11. Set DRY_RUN=1 to see only whether the versions go together.
set -euo pipefail

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

fail() {
    printf 'launch: %s\n' "$*" >&2
    exit 2
}

[[ ${1:-} == lowest || ${1:-} == newest ]] || fail "the first argument must be lowest or newest, not '${1:-}'"
command -v "${2:-}" >/dev/null || fail "the second argument must be an interpreter, such as python3.11, not '${2:-}'"
bound=$1 python=$2
shift 2

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$python" -m venv "$folder/venv"

# NAME>=VERSION of the dependencies and of the extra dev, as NAME==VERSION
"$folder/venv/bin/python" - "$REPO/pyproject.toml" >"$folder/constraints.txt" <<'END'
import re, sys, tomllib
project = tomllib.load(open(sys.argv[1], "rb"))["project"]
for line in project["dependencies"] + project["optional-dependencies"]["dev"]:
    name, version = re.fullmatch(r"([\w.-]+)(?:\[[\w,]+\])?>=([\d.]+)", line).groups()
    print(f"{name}=={version}")
END
[[ $bound == lowest ]] || : >"$folder/constraints.txt"

if ! "$folder/venv/bin/python" -m pip install --disable-pip-version-check ${DRY_RUN:+--dry-run} \
    --constraint "$folder/constraints.txt" --editable "${REPO}[dev]" >"$folder/log" 2>&1; then
    grep -v '^WARNING' "$folder/log" | tail -n 20 >&2
    exit 1
fi
[[ -z ${DRY_RUN:-} ]] || exit 0
cd "$REPO"
"$folder/venv/bin/python" -m pytest "$@"

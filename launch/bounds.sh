#!/usr/bin/env bash
# Runs the tests on the oldest or the newest versions that pyproject.toml allows, in an environment of its own:
#
#     ./launch/bounds.sh lowest|newest PYTHON [arguments of pytest]
#
# "lowest" is every direct dependency at its lower bound, "newest" whatever the package index has; constraints.txt is
# not used. PYTHON is an interpreter, such as python3.11. The environment is thrown away at the end; VENV=FOLDER makes it
# there, keeps it, and uses it again the next time. DRY_RUN=1 only asks whether the versions go together.
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
venv=${VENV:-$folder/venv}
"$python" -m venv "$venv"
venv=$(cd "$venv" && pwd -P) # the tests run in another folder

options=(--upgrade --upgrade-strategy eager) # in an environment that was there before
if [[ $bound == lowest ]]; then
    # NAME>=VERSION of the dependencies and of the extra dev, as NAME==VERSION, each with its marker
    "$venv/bin/python" - "$REPO/pyproject.toml" >"$folder/constraints.txt" <<'PYTHON'
import re, sys, tomllib
project = tomllib.load(open(sys.argv[1], "rb"))["project"]
for line in project["dependencies"] + project["optional-dependencies"]["dev"]:
    name, version, marker = re.fullmatch(r"([\w.-]+)(?:\[[\w,]+\])?>=([\d.]+)(;.+)?", line).groups()
    print(f"{name}=={version}{marker or ''}")
PYTHON
    options=(--constraint "$folder/constraints.txt")
fi

if ! "$venv/bin/python" -m pip install --disable-pip-version-check ${DRY_RUN:+--dry-run} "${options[@]}" \
    --editable "${REPO}[dev]" >"$folder/log" 2>&1; then
    grep -v '^WARNING' "$folder/log" | tail -n 20 >&2
    exit 1
fi
[[ -z ${DRY_RUN:-} ]] || exit 0
cd "$REPO"
"$venv/bin/python" -m pytest "$@"

#!/usr/bin/env bash
# Sets up this clone, checks style, types and layers, and runs the tests:
#
#     ./launch/test.sh [arguments of pytest, with paths relative to the clone]
#
# Slow tests run with -m slow.
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$REPO" || exit
prepare_environment dev

run() {
    say "$1"
    shift
    "$VENV/bin/python" -m "$@"
}

run "ruff: lint" ruff check --quiet
run "ruff: format" ruff format --check --quiet
run "pyright" pyright --pythonpath "$VENV/bin/python"
# One file's tests stay in one process, where they share fixtures and compiled programs. The layers
# (import-linter) are among the tests.
run "pytest" pytest -n 2 --dist loadfile "$@"

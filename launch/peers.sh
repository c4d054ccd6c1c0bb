#!/usr/bin/env bash
# Compares this project with diffusers, peft and torch-fidelity on random cases, in an environment of its own:
#
#     ./launch/peers.sh [arguments of pytest, with paths relative to the clone; default: tests/peers]
#
# Needs Python 3.11 (PYTHON names another) and about 2 GB of disk for .venv-peers.
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$REPO" || exit

PEERS=("torch==2.13.0" "diffusers==0.42.1" "transformers==5.24.0" "peft==0.21.2" "accelerate>=1")
environment=$REPO/.venv-peers
stamp=$environment/.installed
wanted=$(printf '%s\n' "${PEERS[@]}" && cksum <"$REPO/pyproject.toml")
if [[ ! -e $stamp || $(<"$stamp") != "$wanted" ]]; then
    python=${PYTHON:-python3.11}
    [[ $(python_version "$python") == 3.11 ]] || fail 2 "$python is not Python 3.11, for which the CPU build of torch is tried"
    say "installing the peers into .venv-peers (a few minutes, once)"
    rm -rf "$environment"
    "$python" -m venv "$environment"
    pip=("$environment/bin/python" -m pip install --quiet --disable-pip-version-check --no-input)
    "${pip[@]}" --constraint "$REPO/constraints.txt" --editable "${REPO}[dev]"
    # CPU builds of torch come from its own index where a machine does not have one already
    "${pip[@]}" "${PEERS[@]}"
    "${pip[@]}" --no-deps torch-fidelity # its torchvision is not needed, and does not fit every torch
    printf '%s' "$wanted" >"$stamp"
fi
(($#)) || set -- tests/peers
exec "$environment/bin/python" -m pytest -n 2 "$@"

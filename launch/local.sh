#!/usr/bin/env bash
# Sets up this clone and runs diffusion_jax.main with the given arguments:
#
#     ./launch/local.sh --config configs/digits.py [--workdir DIR] [--mode MODE] [--config.field=value ...]
#
# Works from any folder. A --config that does not exist there is looked for in the clone.
# The first run makes .venv; environment.sh has the variables that change how.
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

# A config may be followed by :ARGUMENT for its get_config.
find_config() {
    if [[ $1 != /* && ! -e ${1%%:*} && -e $REPO/${1%%:*} ]]; then
        printf '%s\n' "$REPO/$1"
    else
        printf '%s\n' "$1"
    fi
}

arguments=()
while (($#)); do
    case $1 in
        --config=*) arguments+=("--config=$(find_config "${1#--config=}")") ;;
        --config)
            arguments+=("$1")
            if (($# > 1)); then
                shift
                arguments+=("$(find_config "$1")")
            fi
            ;;
        *) arguments+=("$1") ;;
    esac
    shift
done

prepare_environment ''
# glibc asks for huge pages: a training step on the CPU takes 12 % less time. Where it does not know that, it ignores it.
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}
# -P: the caller's folder is not searched for modules, so a second clone there cannot stand in for this one
exec "$VENV/bin/python" -P -m diffusion_jax.main ${arguments[@]+"${arguments[@]}"}

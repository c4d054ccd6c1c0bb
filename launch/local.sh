#!/usr/bin/env bash
# Sets up this clone and runs a command of the project with the given arguments:
#
#     ./launch/local.sh --config configs/digits.py [--workdir DIR] [--mode MODE] [--config.field=value ...]
#     ./launch/local.sh --mode sample --from DIR --prompt "..."   draws from a published checkpoint
#     ./launch/local.sh metrics --generated DIR --reference DIR   scores images
#     ./launch/local.sh hub convert SRC DST                       opens and writes other libraries' checkpoints
#     ./launch/local.sh encode --vae VAE --out DIR ...            images to latents
#     ./launch/local.sh prepare NAME [--data_dir DIR]             downloads a dataset of TensorFlow Datasets
#     ./launch/local.sh benchmarks.NAME                           one of the benchmarks
#
# --help after each says more. Works from any folder. A --config that does not exist there is looked for in the clone.
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

# prepare alone needs TensorFlow, which an extra of its own brings into .venv.
extra=''
module=diffusion_jax.main
case ${1:-} in
    prepare) module=diffusion_jax.data.prepare extra=prepare && shift ;;
    metrics | hub) module=diffusion_jax.$1 && shift ;;
    encode) module=diffusion_jax.jobs.encode && shift ;;
    benchmarks.*) module=$1 && shift ;;
    -* | '') ;;
    *) fail 2 "$1 is no command; it can be metrics, hub, encode, prepare or benchmarks.NAME; options begin with --" ;;
esac

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

prepare_environment "$extra"
# glibc asks for huge pages: a training step on the CPU takes 12 % less time. Where it does not know that, it ignores it.
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}
# -P: the caller's folder is not searched for modules, so a second clone there cannot stand in for this one
exec "$VENV/bin/python" -P -m "$module" ${arguments[@]+"${arguments[@]}"}

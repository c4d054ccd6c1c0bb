# shellcheck shell=bash
# Makes and keeps .venv, for the scripts of this folder; they source it and call prepare_environment.
#
# Reads: PYTHON                      the interpreter to use (3.11, 3.12 or 3.13; default: the newest found)
#        DIFFUSION_JAX_ACCELERATOR   cpu, cuda, cuda12 or tpu (default: what the machine has)
# Sets:  REPO, VENV

set -euo pipefail

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
VENV=$REPO/.venv
BUSY=$VENV/.installing # there while .venv is being made or changed: where it was left behind, .venv is broken

say() { printf 'launch: %s\n' "$*" >&2; }

# $1: the exit code, 2 for bad input
fail() {
    say "${*:2}"
    exit "$1"
}

# --- Which Python ---------------------------------------------------------------------------------

# Prints major.minor of interpreter $1; fails where it does not run, is not supported or cannot make a venv.
python_version() {
    "$1" -c '
import sys, venv, ensurepip
if not (3, 11) <= sys.version_info[:2] < (3, 14): sys.exit(1)
print("%d.%d" % sys.version_info[:2])' 2>/dev/null </dev/null
}

choose_python() {
    local candidate
    if [[ -n ${PYTHON:-} ]]; then
        python_version "$PYTHON" >/dev/null ||
            fail 2 "PYTHON=$PYTHON is not a Python 3.11, 3.12 or 3.13 with the venv module"
        printf '%s\n' "$PYTHON"
        return
    fi
    for candidate in python3.13 python3.12 python3.11 python3 python; do
        if python_version "$candidate" >/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    fail 1 "no Python 3.11, 3.12 or 3.13 with the venv module found (Debian, Ubuntu: apt install python3-venv);" \
        "PYTHON=/path/to/python names one that is elsewhere"
}

# --- Which build of jax ---------------------------------------------------------------------------

has_nvidia_gpu() {
    # In a container the kernel module may show GPUs that were not handed to it, so nvidia-smi has the last word.
    if command -v nvidia-smi >/dev/null; then
        nvidia-smi -L 2>/dev/null | grep -q '^GPU '
    else
        compgen -G '/proc/driver/nvidia/gpus/*' >/dev/null
    fi
}

# CUDA 13 needs driver 580 and a GPU of compute capability 7.5 (Turing); older ones get CUDA 12.
choose_cuda() {
    local driver='' capability=''
    if command -v nvidia-smi >/dev/null; then
        IFS=', ' read -r capability driver < <(
            nvidia-smi --query-gpu=compute_cap,driver_version --format=csv,noheader 2>/dev/null | sort -V
        ) || true
    elif [[ -r /sys/module/nvidia/version ]]; then
        driver=$(</sys/module/nvidia/version)
    fi
    if [[ $driver =~ ^([0-9]+)\. ]] && ((BASH_REMATCH[1] < 580)); then
        printf 'cuda12\n'
    elif [[ $capability =~ ^([0-9]+)\.([0-9]+)$ ]] && ((BASH_REMATCH[1] * 10 + BASH_REMATCH[2] < 75)); then
        printf 'cuda12\n'
    else
        printf 'cuda\n'
    fi
}

# A TPU chip is on the PCI bus: vendor Google, one of the device numbers that JAX looks for.
has_tpu() {
    local vendor
    for vendor in /sys/bus/pci/devices/*/vendor; do
        [[ -r $vendor && $(<"$vendor") == 0x1ae0 ]] || continue
        case $(<"${vendor%vendor}device") in
            0x0027 | 0x0056 | 0x005e | 0x0062 | 0x0063 | 0x006f | 0x0076) return 0 ;;
        esac
    done
    return 1
}

# Prints cpu, or the extra of pyproject.toml that holds the right build.
choose_accelerator() {
    case ${DIFFUSION_JAX_ACCELERATOR:-} in
        cpu | cuda12 | tpu) printf '%s\n' "$DIFFUSION_JAX_ACCELERATOR" ;;
        cuda) choose_cuda ;;
        '') if has_nvidia_gpu; then choose_cuda; elif has_tpu; then printf 'tpu\n'; else printf 'cpu\n'; fi ;;
        *) fail 2 "DIFFUSION_JAX_ACCELERATOR=$DIFFUSION_JAX_ACCELERATOR; it can be cpu, cuda, cuda12 or tpu" ;;
    esac
}

# --- Installing -----------------------------------------------------------------------------------

# .venv/.installed[-EXTRA] says what is installed, in two lines. A change of the first (interpreter, build of jax,
# place) needs a new .venv; a change of the second (the pinned set) an update.
stamp() { printf '%s/.installed%s\n' "$VENV" "${1:+-$1}"; }

# $1: the extra ('', dev or prepare). Prints the stamp as it should be.
wanted_stamp() {
    local interpreter=$VENV/bin/python
    [[ -z ${PYTHON:-} ]] || interpreter=$PYTHON
    printf 'python %s, jax for %s, in %s\n' "$(python_version "$interpreter" || true)" "$ACCELERATOR" "$REPO"
    cat "$REPO/pyproject.toml" "$REPO/constraints.txt" | cksum
}

is_installed() {
    [[ -x $VENV/bin/python && ! -e $BUSY && -e $(stamp "$1") && $(wanted_stamp "$1") == "$(<"$(stamp "$1")")" ]]
}

# Another launch may be installing: wait for it. The lock belongs to the open file 9, so it outlives the Python
# that takes it, and is released when this shell (and any pip it started) has closed the file.
lock() {
    exec 9>"$REPO/.venv.lock"
    "$1" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)' 2>/dev/null && return
    say "waiting for another launch that is installing"
    "$1" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'
}

needs_new_venv() {
    local previous
    [[ ! -e $BUSY ]] && python_version "$VENV/bin/python" >/dev/null || return 0
    for previous in "$VENV"/.installed*; do
        [[ ! -e $previous || $(head -n 1 "$previous") == "$(wanted_stamp '' | head -n 1)" ]] || return 0
    done
    return 1
}

make_venv() {
    # renamed first, so that an interrupted removal leaves nothing that looks like an environment
    rm -rf "$VENV.old"
    [[ ! -e $VENV ]] || mv "$VENV" "$VENV.old"
    rm -rf "$VENV.old"
    mkdir "$VENV"
    touch "$BUSY"
    "$1" -m venv "$VENV" >/dev/null </dev/null || fail 1 "$1 could not make a virtual environment in $VENV"
}

# $1: the extra ('', dev or prepare)
install() {
    local python extras=() log=$VENV/install.log
    python=$(choose_python)
    lock "$python"
    if ! is_installed "$1"; then
        if needs_new_venv; then
            make_venv "$python"
        elif [[ -e $(stamp '') ]]; then
            touch "$BUSY" # but not in an environment of the user's own, which is never thrown away
        fi
        [[ $ACCELERATOR == cpu ]] || extras+=("$ACCELERATOR")
        [[ -z $1 ]] || extras+=("$1")
        say "installing into .venv: Python $(python_version "$VENV/bin/python")," \
            "jax for ${ACCELERATOR}${1:+, the extra $1} (a minute or two, once)"
        if ! "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
            --constraint "$REPO/constraints.txt" \
            --editable "$REPO$(IFS=, && printf '%s' "${extras[*]:+[${extras[*]}]}")" >"$log" 2>&1 </dev/null; then
            grep -i '^error' "$log" >&2 || tail -n 5 "$log" >&2
            fail 1 "pip could not install the packages; all that it said is in .venv/install.log"
        fi
        [[ -z $1 ]] || wanted_stamp "$1" >"$(stamp "$1")"
        wanted_stamp '' >"$(stamp '')"
        rm -f "$BUSY"
    fi
    exec 9>&-
}

# Makes .venv hold this repository and its pinned packages; $1: the extra ('', dev or prepare).
prepare_environment() {
    ACCELERATOR=$(choose_accelerator)
    is_installed "$1" || install "$1"
}

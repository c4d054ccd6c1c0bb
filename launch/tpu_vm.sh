#!/usr/bin/env bash
# Runs this clone on a Cloud TPU VM or on all workers of a pod slice; --help says how.
set -euo pipefail

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
readonly REPO

usage() {
    cat <<'END'
Runs diffusion_jax on a Cloud TPU VM, or on every worker of a pod slice, through gcloud.

  launch/tpu_vm.sh [options] COMMAND [-- arguments of diffusion_jax.main]

Commands
  create    make the TPU, or use the one that has the name already; one that was preempted is made anew
  copy      copy this clone to every worker
  install   install it there
  run       start the run on every worker, in the background; it is restarted for as long as it asks for it
  up        create, copy, install, run
  watch     up, and the same again whenever the TPU is preempted, until the run has ended
  tail      follow the log of one worker
  fetch     copy the work directory from one worker into ./runs
  stop      have the run save and end
  delete    delete the TPU

Options
  --name NAME        of the TPU; needed
  --zone ZONE        such as us-west4-a; needed
  --type TYPE        accelerator type such as v5litepod-8, v4-32 or v6e-256; needed by create, up and watch
  --version VERSION  runtime image (default: the one for the type)
  --project PROJECT  (default: gcloud's)
  --spot             ask for preemptible capacity
  --workdir DIR      of the run, on the workers (default: runs/NAME in the copy of the clone); with several workers,
                     or with watch, it has to be a folder that all of them see, and that outlives them
  --setup COMMAND    runs on every worker before the run, for example to mount that folder
  --worker N         for tail and fetch (default: 0)
  --dry-run          print every command instead of running it
END
}

fail() {
    printf 'launch: %s\n' "$*" >&2
    exit 2
}

# --- Arguments ------------------------------------------------------------------------------------

name='' zone='' type='' version='' project='' workdir='' setup='' worker=0 spot='' dry_run='' command=''
arguments=()
while (($#)); do
    case $1 in
        -h | --help)
            usage
            exit 0
            ;;
        --name | --zone | --type | --version | --project | --workdir | --setup | --worker)
            (($# > 1)) || fail "$1 needs a value, see --help"
            printf -v "${1#--}" '%s' "$2"
            shift
            ;;
        --spot) spot=yes ;;
        --dry-run) dry_run=yes ;;
        --)
            shift
            arguments=("$@")
            break
            ;;
        -*) fail "$1 is not an option, see --help (arguments of the run come after --)" ;;
        *)
            [[ -z $command ]] || fail "two commands, $command and $1; arguments of the run come after --"
            command=$1
            ;;
    esac
    shift
done

case $command in
    create | copy | install | run | up | watch | tail | fetch | stop | delete) ;;
    '') fail "no command given; it can be create, copy, install, run, up, watch, tail, fetch, stop or delete" ;;
    *) fail "$command is not a command; it can be create, copy, install, run, up, watch, tail, fetch, stop or delete" ;;
esac
[[ -n $name ]] || fail "--name is needed: what the TPU is called"
[[ -n $zone ]] || fail "--zone is needed, for example --zone us-west4-a"
[[ $worker =~ ^[0-9]+$ ]] || fail "--worker $worker is not a number"
case $command in
    create | up | watch) [[ -n $type ]] || fail "--type is needed, for example --type v5litepod-8" ;;
esac
case $command in
    run | up | watch) ((${#arguments[@]})) || fail "nothing to run: give the run's arguments after --, such as -- --config configs/digits.py" ;;
esac
workdir=${workdir:-runs/$name}
if [[ -z $version ]]; then
    case $type in
        v6e-*) version=v2-alpha-tpuv6e ;;
        v5litepod-*) version=v2-alpha-tpuv5-lite ;;
        v5p-*) version=v2-alpha-tpuv5 ;;
        *) version=tpu-ubuntu2204-base ;;
    esac
fi
place=("--zone=$zone")
[[ -z $project ]] || place+=("--project=$project")

# --- Running or printing --------------------------------------------------------------------------

# $1, ...: words; prints them as one line that a shell reads back as the same words
quoted() {
    local word line=''
    for word; do
        printf -v word '%q' "$word"
        line+=" $word"
    done
    printf '%s\n' "${line# }"
}

do_or_print() {
    if [[ -n $dry_run ]]; then quoted "$@"; else "$@"; fi
}

tpus() { do_or_print gcloud compute tpus tpu-vm "$@" "${place[@]}"; }

# $1: which worker; $2: one command line for its shell
on_worker() { tpus ssh "$name" "--worker=$1" "--command=$2"; }

# --- Commands -------------------------------------------------------------------------------------

state() { gcloud compute tpus tpu-vm describe "$name" "${place[@]}" --format='value(state)' 2>/dev/null || true; }

make() {
    tpus create "$name" "--accelerator-type=$type" "--version=$version" ${spot:+--spot}
}

create() {
    if [[ -n $dry_run ]]; then
        tpus describe "$name" '--format=value(state)'
        make
        return
    fi
    case $(state) in
        '') make ;;
        PREEMPTED | TERMINATED)
            tpus delete "$name" --quiet
            make
            ;;
        STOPPED) tpus start "$name" ;;
        *) printf 'launch: using the TPU %s that is there\n' "$name" >&2 ;;
    esac
}

copy() {
    local archive
    if [[ -n $dry_run ]]; then
        archive=/tmp/diffusion_jax.tgz
        printf 'git -C . ls-files -z --cached --others --exclude-standard | tar --create --gzip --null --files-from=- --file=%s\n' "$archive"
    else
        archive=$(mktemp -d)/diffusion_jax.tgz
        git -C "$REPO" ls-files -z --cached --others --exclude-standard |
            tar --create --gzip --directory "$REPO" --ignore-failed-read --null --files-from=- --file="$archive"
    fi
    tpus scp "$archive" "$name:diffusion_jax.tgz" --worker=all
    on_worker all 'mkdir -p diffusion_jax && tar --extract --gzip --directory diffusion_jax --file diffusion_jax.tgz'
    [[ -n $dry_run ]] || rm -r "$(dirname "$archive")"
}

install() {
    on_worker all 'cd diffusion_jax && DIFFUSION_JAX_ACCELERATOR=tpu ./launch/local.sh --help >/dev/null'
}

run() {
    local line busy
    # Two runs on one TPU would only take it from each other.
    # shellcheck disable=SC2016 # expanded there, not here
    busy='if [ ! -e diffusion_jax.exit ] && kill -0 "$(cat diffusion_jax.pid 2>/dev/null)" 2>/dev/null; then'
    busy+=' echo "launch: a run is going on here; stop ends it" >&2; exit 2; fi'
    line=$(quoted nohup setsid ./launch/supervise.sh "${arguments[@]}" --workdir "$workdir" --coordinator auto)
    # The remote shell leaves at once; the run that it has started goes on.
    line="EXIT_FILE=../diffusion_jax.exit DIFFUSION_JAX_ACCELERATOR=tpu $line >../diffusion_jax.log 2>&1 </dev/null"
    on_worker all "$busy; cd diffusion_jax && rm -f ../diffusion_jax.exit && ${setup:+($setup) && }{ $line & echo \$! >../diffusion_jax.pid; }"
}

up() { create && copy && install && run; }

# Looks every minute; a TPU may be made anew so many times.
watch() {
    local remake=0 now ended
    up
    if [[ -n $dry_run ]]; then
        printf '# every minute, until diffusion_jax.exit is there; if the state is PREEMPTED: all of the above again\n'
        tpus describe "$name" '--format=value(state)'
        on_worker 0 'cat diffusion_jax.exit'
        return
    fi
    while sleep 60; do
        now=$(state)
        case $now in
            READY)
                ended=$(on_worker 0 'cat diffusion_jax.exit 2>/dev/null' 2>/dev/null || true)
                if [[ $ended =~ ^[0-9]+$ ]]; then
                    printf 'launch: the run has ended with exit code %s\n' "$ended" >&2
                    return "$ended"
                fi
                ;;
            PREEMPTED | TERMINATED | '')
                ((remake < ${MAX_RESTARTS:-20})) || fail "preempted $remake times; giving up"
                remake=$((remake + 1))
                printf 'launch: the TPU was preempted (%s); making it anew, number %d\n' "${now:-gone}" "$remake" >&2
                until up; do
                    ((remake < ${MAX_RESTARTS:-20})) || fail "the TPU cannot be made; giving up"
                    remake=$((remake + 1))
                    sleep 300
                done
                ;;
        esac
    done
}

tail_log() { on_worker "$worker" 'tail --lines=100 --follow=name --retry diffusion_jax.log'; }

fetch() {
    local from=$workdir
    [[ $from == /* ]] || from=diffusion_jax/$from
    do_or_print mkdir -p runs
    tpus scp --recurse "$name:$from" runs/ "--worker=$worker"
}

# shellcheck disable=SC2016 # expanded there, not here
stop() { on_worker all 'kill -s TERM "$(cat diffusion_jax.pid)"'; }

delete() { tpus delete "$name" --quiet; }

case $command in
    tail) tail_log ;;
    *) "$command" ;;
esac

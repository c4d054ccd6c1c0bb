#!/usr/bin/env bash
# Runs launch/local.sh with the given arguments, and again for as long as that makes sense:
#
#     ./launch/supervise.sh --config configs/digits.py [...]
#
# Every start resumes from the newest checkpoint. Started again is a run that
#   - exits with 75: it has saved (or lost another process of the run) and asks for it;
#   - exits with 143, where the SIGTERM was meant for the run and not for this script;
#   - was ended by SIGKILL, SIGABRT, SIGBUS or SIGSEGV (137, 134, 135, 139).
# Any other exit code is passed on: 0 done, 2 bad input, 1 a defect, 130 Ctrl-C.
#
# Reads: MAX_RESTARTS     starts without a steady run between them before it gives up (default 20)
#        STEADY_SECONDS   a run that lasted so long was steady (default 600)
#        BACKOFF_SECONDS  pause before the next start, doubled each time up to 300 s (default 5)
#        EXIT_FILE        gets the exit code in the end (default: no file)
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
readonly HERE LONGEST_PAUSE=300
max_restarts=${MAX_RESTARTS:-20} steady=${STEADY_SECONDS:-600} first_pause=${BACKOFF_SECONDS:-5}

for setting in "$max_restarts" "$steady" "$first_pause"; do
    [[ $setting =~ ^[0-9]+$ ]] || {
        printf 'launch: MAX_RESTARTS, STEADY_SECONDS and BACKOFF_SECONDS must be whole numbers, not %s\n' "$setting" >&2
        exit 2
    }
done

[[ -z ${EXIT_FILE:-} ]] || trap 'printf "%s\n" "$?" >"$EXIT_FILE"' EXIT
child='' told=''

# $1: a signal, handed on to the run; $2: not empty where it means that this script has to end with it
pass_on() {
    told=$2
    [[ -z $child ]] || kill -s "$1" "$child" 2>/dev/null || true
}
trap 'pass_on TERM yes' TERM
trap 'pass_on INT yes' INT
trap 'pass_on USR1 ""' USR1

# A trapped signal ends `wait` early, so it is asked again until the child is gone.
wait_for_child() {
    local code
    while true; do
        code=0
        wait "$child" || code=$?
        kill -0 "$child" 2>/dev/null || break
    done
    return "$code"
}

restarts=0 pause=$first_pause
while true; do
    begun=$SECONDS
    "$HERE/local.sh" "$@" &
    child=$!
    code=0
    wait_for_child || code=$?
    child=''
    case $code in
        75 | 134 | 135 | 137 | 139 | 143) [[ -z $told ]] || exit "$code" ;;
        *) exit "$code" ;;
    esac
    if ((SECONDS - begun >= steady)); then
        restarts=0 pause=$first_pause
    fi
    if ((restarts >= max_restarts)); then
        printf 'launch: exit code %d after %d restarts; giving up\n' "$code" "$restarts" >&2
        exit "$code"
    fi
    restarts=$((restarts + 1))
    printf 'launch: exit code %d; restart %d of at most %d in %d s\n' "$code" "$restarts" "$max_restarts" "$pause" >&2
    sleep "$pause" &
    child=$!
    wait_for_child || true
    child=''
    [[ -z $told ]] || exit "$code"
    pause=$((pause * 2 < LONGEST_PAUSE ? pause * 2 : LONGEST_PAUSE))
done

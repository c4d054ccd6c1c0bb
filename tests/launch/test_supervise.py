"""The loop around a run, with a stand-in for it that exits as it is told."""

import signal
import time

import pytest

from tests.launch.machine import Machine

# Exits with the next of $CODES at each start; "k" stands for a SIGKILL.
EXITS = """
number=$(cat starts 2>/dev/null || echo 0)
echo $((number + 1)) >starts
codes=($CODES)
code=${codes[$number]}
[[ $code != k ]] || kill -KILL $$
exit "$code"
"""
# Waits for a signal, and exits with 143 or 75 as main does.
WAITS = """
trap 'exit 143' TERM
trap 'echo saved; exit 75' USR1
echo start >>starts
while true; do sleep 0.05; done
"""


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


@pytest.mark.parametrize(
    ("codes", "starts", "code"),
    [
        ("0", 1, 0),
        ("75 143 k 134 0", 5, 0),
        ("75 2", 2, 2),  # bad input is not tried again
        ("1", 1, 1),  # nor is a defect
        ("130", 1, 130),
        ("75 75 75 75 75 75", 4, 75),
    ],
)
def test_only_what_asks_for_it_is_started_again(machine, codes, starts, code):
    machine.local_sh(EXITS)
    result = machine.launch("supervise.sh", CODES=codes, MAX_RESTARTS="3" if codes.count("75") > 3 else "9")
    assert result[0] == code, result
    assert int((machine.clone / "starts").read_text()) == starts
    assert result[2].count("launch: exit code") == starts - 1 + ("giving up" in result[2])
    assert ("giving up" in result[2]) == (code == 75)


def test_pauses_grow_and_a_steady_run_starts_the_count_anew(machine):
    machine.local_sh(EXITS)
    machine.tool("sleep", 'echo "$1" >>pauses')
    machine.launch("supervise.sh", CODES="75 " * 9 + "0", BACKOFF_SECONDS="40")
    assert (machine.clone / "pauses").read_text().split() == ["40", "80", "160", *["300"] * 6]
    (machine.clone / "starts").unlink()
    code, _, _ = machine.launch("supervise.sh", CODES="75 " * 9 + "0", STEADY_SECONDS="0", MAX_RESTARTS="1")
    assert code == 0


def wait_for(path, process, lines=1):
    deadline = time.monotonic() + 30
    while not path.exists() or len(path.read_text().splitlines()) < lines:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


def test_told_to_end_it_ends_with_the_run(machine):
    machine.local_sh(WAITS)
    process = machine.start("supervise.sh", EXIT_FILE="code")
    wait_for(machine.clone / "starts", process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 143 and errors == ""
    assert (machine.clone / "starts").read_text() == "start\n"
    assert (machine.clone / "code").read_text() == "143\n"


def test_a_warning_is_handed_on_and_the_run_started_again(machine):
    machine.local_sh(WAITS)
    process = machine.start("supervise.sh")
    wait_for(machine.clone / "starts", process)
    process.send_signal(signal.SIGUSR1)
    wait_for(machine.clone / "starts", process, lines=2)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 143 and output == "saved\n" and errors.count("\n") == 1


def test_arguments_reach_the_run_as_they_are(machine):
    machine.local_sh("printf '%s\\n' \"$@\"")
    assert machine.launch("supervise.sh", "--config", "a b", "", "$x")[1] == "--config\na b\n\n$x\n"


def test_a_setting_that_is_no_number_is_named(machine):
    code, _, errors = machine.launch("supervise.sh", MAX_RESTARTS="many")
    assert code == 2 and "must be whole numbers, not many" in errors and errors.count("\n") == 1

"""tpu_vm.sh against a stand-in for gcloud, which runs what is meant for a worker in a folder of its own."""

import os
import shlex
import subprocess
import time

import pytest

from tests.launch.machine import Machine

PLACE = ("--name", "my-tpu", "--zone", "us-x1-a")
RUN = ("--", "--config", "configs/di gits.py", "--config.name=it's $HOME")

# Notes its arguments, one call a line. `ssh` is bash in $WORKER, `describe` says $STATE.
GCLOUD = """
printf '%q ' "$@" >>"$CALLS"; echo >>"$CALLS"
[[ $3 == tpu-vm ]] || exit 9
case $4 in
    describe) [[ -n ${STATE:-} ]] && echo "$STATE" ;;
    scp) [[ $6 == *: || $5 == *:* ]] || cp "$5" "$WORKER/${6#*:}" ;;
    ssh) for argument; do
        [[ $argument != --command=* ]] || (cd "$WORKER" && bash -c "${argument#--command=}") || exit
    done ;;
esac
"""


@pytest.fixture
def machine(tmp_path):
    machine = Machine(tmp_path)
    worker = tmp_path / "worker"
    worker.mkdir()
    machine.environment |= {"CALLS": str(tmp_path / "calls"), "WORKER": str(worker)}
    machine.tool("gcloud", GCLOUD)
    machine.worker, machine.calls_file = worker, tmp_path / "calls"
    subprocess.run(["git", "init", "--quiet"], cwd=machine.clone, check=True)
    machine.local_sh("printf '%s\\n' \"$@\" >ran")
    return machine


def calls(machine):
    """Of each call, the command and what follows it, without the zone."""
    lines = [shlex.split(line) for line in machine.calls_file.read_text().splitlines()]
    assert all(line[:3] == ["compute", "tpus", "tpu-vm"] and line.count("--zone=us-x1-a") == 1 for line in lines)
    return [[word for word in line[3:] if word != "--zone=us-x1-a"] for line in lines]


def dry(machine, command, *options):
    code, output, errors = machine.launch(
        "tpu_vm.sh", *PLACE, "--type", "v5litepod-16", "--dry-run", *options, command, *RUN
    )
    assert (code, errors) == (0, "")
    assert not machine.calls_file.exists(), "nothing is run"
    return [shlex.split(line) for line in output.splitlines()]


def test_a_dry_run_prints_every_command(machine):
    lines = dry(machine, "up", "--spot", "--project", "p")
    at = ["--zone=us-x1-a", "--project=p"]
    tpu = ["gcloud", "compute", "tpus", "tpu-vm"]
    assert lines[0] == [*tpu, "describe", "my-tpu", "--format=value(state)", *at]
    wanted = ["--accelerator-type=v5litepod-16", "--version=v2-alpha-tpuv5-lite", "--spot"]
    assert lines[1] == [*tpu, "create", "my-tpu", *wanted, *at]
    assert lines[2][:4] == ["git", "-C", ".", "ls-files"] and "tar" in lines[2]
    assert [line[4] for line in lines[3:]] == ["scp", "ssh", "ssh", "ssh"]
    assert all("--worker=all" in line and line[-2:] == at for line in lines[3:])
    assert dry(machine, "watch")[0][4] == "describe"
    assert dry(machine, "delete") == [[*tpu, "delete", "my-tpu", "--quiet", "--zone=us-x1-a"]]
    scp = [*tpu, "scp", "--recurse", "my-tpu:diffusion_jax/runs/my-tpu", "runs/", "--worker=3", "--zone=us-x1-a"]
    assert dry(machine, "fetch", "--worker", "3") == [["mkdir", "-p", "runs"], scp]
    assert "--worker=0" in dry(machine, "tail")[0] and "--worker=all" in dry(machine, "stop")[0]


def test_up_copies_installs_and_runs_there(machine):
    code, _, errors = machine.launch(
        "tpu_vm.sh",
        *PLACE,
        "--type",
        "v4-32",
        "--workdir",
        "/shared/a b",
        "--setup",
        "echo mounted >mounted",
        "up",
        *RUN,
    )
    assert code == 0, errors
    assert [call[0] for call in calls(machine)] == ["describe", "create", "scp", "ssh", "ssh", "ssh"]
    exit_file = machine.worker / "diffusion_jax.exit"
    deadline = time.monotonic() + 30
    while not exit_file.exists() or not exit_file.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert exit_file.read_text() == "0\n"
    copied = machine.worker / "diffusion_jax"
    assert (copied / "mounted").exists() and int((machine.worker / "diffusion_jax.pid").read_text()) > 1
    ran = (copied / "ran").read_text().split("\n")[:-1]
    assert ran == [*RUN[1:], "--workdir", "/shared/a b", "--coordinator", "auto"]


def test_a_second_run_does_not_begin_beside_the_first(machine):
    (machine.worker / "diffusion_jax").mkdir()
    (machine.worker / "diffusion_jax.pid").write_text(str(os.getpid()))  # of a process that lives
    code, _, errors = machine.launch("tpu_vm.sh", *PLACE, "run", *RUN)
    assert code == 2 and "a run is going on here; stop ends it" in errors
    assert not (machine.worker / "diffusion_jax.log").exists()


@pytest.mark.parametrize(
    ("state", "expected"),
    [("READY", ["describe"]), ("PREEMPTED", ["describe", "delete", "create"]), ("STOPPED", ["describe", "start"])],
)
def test_what_is_there_is_used_and_what_was_preempted_made_anew(machine, state, expected):
    assert machine.launch("tpu_vm.sh", *PLACE, "--type", "v4-8", "create", STATE=state)[0] == 0
    assert [call[0] for call in calls(machine)] == expected


def test_watch_makes_a_preempted_tpu_anew_and_ends_with_the_run(machine):
    # The first look finds it preempted; later ones find it ready.
    machine.tool("sleep", "exit 0")
    look = 'looks=$(($(cat "$HOME/looks" 2>/dev/null || echo 0) + 1)); echo $looks >"$HOME/looks"; '
    look += "[[ $looks == [23] ]] && STATE=PREEMPTED || STATE=READY"
    machine.tool("gcloud", GCLOUD.replace("describe)", f"describe) {look};"))
    machine.local_sh("[[ $1 == --help ]] || exit 2")
    code, _, errors = machine.launch("tpu_vm.sh", *PLACE, "--type", "v4-8", "watch", *RUN)
    assert code == 2 and "was preempted (PREEMPTED); making it anew, number 1" in errors
    assert "ended with exit code 2" in errors
    assert [call[0] for call in calls(machine)].count("create") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "no command given; it can be create"),
        (("destroy", *PLACE), "destroy is not a command"),
        (("create", "--zone", "z"), "--name is needed"),
        (("create", "--name", "n"), "--zone is needed"),
        (("create", *PLACE), "--type is needed"),
        (("run", *PLACE), "nothing to run"),
        (("create", *PLACE, "--typ", "v4-8"), "--typ is not an option"),
        (("create", *PLACE, "--type"), "--type needs a value"),
        (("tail", *PLACE, "--worker", "all"), "--worker all is not a number"),
    ],
)
def test_a_wrong_command_is_one_clear_line(machine, arguments, says):
    code, _, errors = machine.launch("tpu_vm.sh", *arguments)
    assert code == 2 and says in errors and errors.count("\n") == 1
    assert not machine.calls_file.exists()


def test_help_names_every_command_and_option(machine):
    _, output, _ = machine.launch("tpu_vm.sh", "--help")
    for word in ("create", "copy", "install", "watch", "tail", "fetch", "stop", "delete", "--spot", "--dry-run"):
        assert f"  {word}" in output

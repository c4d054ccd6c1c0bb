"""The pinned set, and the launchers run against a stand-in for Python that records instead of installing."""

import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

REPO = Path(__file__).parent.parent
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
CONSTRAINTS = (REPO / "constraints.txt").read_text()
PYTHONS = ("3.11", "3.12", "3.13")


def pins(python: str) -> dict[str, Version]:
    """Package -> pinned version on one Python."""
    lines = [Requirement(line) for line in CONSTRAINTS.splitlines() if not line.startswith("#")]
    found: dict[str, Version] = {}
    for line in lines:
        if line.marker is None or line.marker.evaluate({"python_version": python}):
            (specifier,) = line.specifier
            assert specifier.operator == "==", line
            assert canonicalize_name(line.name) not in found, f"{line.name} is pinned twice on Python {python}"
            found[canonicalize_name(line.name)] = Version(specifier.version)
    return found


@pytest.mark.parametrize("python", PYTHONS)
def test_every_dependency_is_pinned_inside_its_bounds(python):
    extras = PROJECT["optional-dependencies"]
    declared = PROJECT["dependencies"] + [line for lines in extras.values() for line in lines]
    pinned = pins(python)
    for requirement in map(Requirement, declared):
        if requirement.marker is not None and not requirement.marker.evaluate({"python_version": python}):
            continue
        assert pinned[canonicalize_name(requirement.name)] in requirement.specifier, str(requirement)


FRAMEWORKS = {"torch", "tensorflow", "tensorflow-cpu", "diffusers", "transformers"}


def test_the_pinned_set_names_no_registry():
    assert not re.search(r"://|^\s*-|@", CONSTRAINTS, flags=re.MULTILINE)


def test_no_other_framework_comes_along_but_for_preparing_datasets():
    extras = PROJECT["optional-dependencies"]
    assert {name for name, lines in extras.items() if FRAMEWORKS & {Requirement(line).name for line in lines}} == {
        "prepare"
    }
    assert not FRAMEWORKS & {Requirement(line).name for line in PROJECT["dependencies"]}
    for python in PYTHONS:
        assert FRAMEWORKS & pins(python).keys() == {"tensorflow-cpu"}


# A stand-in for Python: installs nothing, and writes what it was asked to do into $RECORD.
STAND_IN = """#!/bin/sh
case "$1 $2" in
  "-m venv") echo venv >> "$RECORD"; mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; chmod +x "$3/bin/python" ;;
  "-m pip")
    for target; do :; done
    echo "pip $target" >> "$RECORD"
    sleep "${PIP_SECONDS:-0}"
    if [ -n "$PIP_FAILS" ]; then echo "ERROR: no such package"; exit 1; fi ;;
  "-P -m") shift 3; printf '%s\\n' "$PWD" "$@" ;;
  *) exec "$REAL_PYTHON" "$@" ;;
esac
"""


class Clone:
    """A copy of what the launchers need, with the stand-in for Python and nothing else on its machine."""

    def __init__(self, folder: Path):
        self.folder, self.tools, self.record = folder / "clone", folder / "tools", folder / "record"
        (self.folder / "launch").mkdir(parents=True)
        (self.folder / "configs").mkdir()
        self.tools.mkdir()
        for file in ("launch/local.sh", "launch/environment.sh", "pyproject.toml", "constraints.txt"):
            (self.folder / file).write_bytes((REPO / file).read_bytes())
        (self.folder / "configs/digits.py").touch()
        self.tool("python", STAND_IN)
        self.tool("nvidia-smi", "exit 9")
        self.environment = {
            "PATH": f"{self.tools}:/usr/bin:/bin",
            "HOME": str(folder),
            "PYTHON": str(self.tools / "python"),
            "REAL_PYTHON": sys.executable,
            "RECORD": str(self.record),
        }

    def tool(self, name: str, text: str) -> None:
        path = self.tools / name
        path.write_text(text if text.startswith("#!") else f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def command(self, *arguments: str) -> list[str]:
        return ["bash", str(self.folder / "launch/local.sh"), *arguments]

    def launch(self, *arguments: str, cwd: Path | None = None, **environment: str):
        return subprocess.run(
            self.command(*arguments),
            cwd=cwd or self.folder,
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def recorded(self) -> list[str]:
        """What was done since the last call: "venv" and "pip EXTRAS"."""
        text = self.record.read_text() if self.record.exists() else ""
        self.record.write_text("")
        return text.replace(str(self.folder), "").split("\n")[:-1]


@pytest.fixture
def clone(tmp_path):
    return Clone(tmp_path)


def test_installs_once_and_again_only_when_something_changed(clone):
    first = clone.launch("--mode", "train")
    assert first.returncode == 0, first.stderr
    assert clone.recorded() == ["venv", "pip "]
    assert first.stderr.count("\n") == 1 and "installing" in first.stderr

    second = clone.launch("--mode", "train")
    assert (clone.recorded(), second.stderr) == ([], "")

    with (clone.folder / "constraints.txt").open("a") as file:
        file.write("something==1\n")
    clone.launch()
    assert clone.recorded() == ["pip "], "a new pin is an update in place"

    clone.launch(DIFFUSION_JAX_ACCELERATOR="tpu")
    assert clone.recorded() == ["venv", "pip [tpu]"], "another build of jax needs a new environment"

    clone.folder.rename(clone.folder.with_name("moved"))
    clone.folder = clone.folder.with_name("moved")
    clone.launch(DIFFUSION_JAX_ACCELERATOR="tpu")
    assert clone.recorded() == ["venv", "pip [tpu]"], "a virtual environment does not survive being moved"


def test_an_interrupted_or_failed_install_is_made_anew(clone):
    process = subprocess.Popen(clone.command(), env=clone.environment | {"PIP_SECONDS": "3"}, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not (clone.record.exists() and "pip" in clone.record.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    clone.recorded()
    assert clone.launch().returncode == 0
    assert clone.recorded() == ["venv", "pip "]

    pyproject = clone.folder / "pyproject.toml"
    before = pyproject.read_text()
    pyproject.write_text(before + "# changed\n")
    failed = clone.launch(PIP_FAILS="yes")
    assert failed.returncode == 1
    assert "ERROR: no such package" in failed.stderr and ".venv/install.log" in failed.stderr
    clone.recorded()
    pyproject.write_text(before)  # what the environment held before it was half changed
    assert clone.launch().returncode == 0
    assert clone.recorded() == ["venv", "pip "]


def test_an_environment_of_the_users_own_is_kept(clone):
    subprocess.run([clone.tools / "python", "-m", "venv", clone.folder / ".venv"], env=clone.environment, check=True)
    (clone.folder / ".venv/mine").touch()
    clone.recorded()
    assert clone.launch(PIP_FAILS="yes").returncode == 1
    assert clone.recorded() == ["pip "]
    assert clone.launch().returncode == 0
    assert clone.recorded() == ["pip "]
    assert (clone.folder / ".venv/mine").exists()


def test_two_launches_at_once_install_once(clone):
    environment = clone.environment | {"PIP_SECONDS": "1"}
    processes = [
        subprocess.Popen(clone.command(), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    messages = [process.communicate(timeout=60)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], messages
    assert clone.recorded() == ["venv", "pip "]
    assert sum("waiting for another launch" in message for message in messages) == 1


def test_arguments_reach_main_and_the_config_is_found_from_anywhere(clone, tmp_path):
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    arguments = ("--config", "configs/digits.py:small", "--config.model.name=a b", "--workdir", "runs/x", "")

    def main_saw(cwd: Path) -> list[str]:
        return clone.launch(*arguments, cwd=cwd).stdout.split("\n")[:-1]

    assert main_saw(clone.folder) == [str(clone.folder), *arguments]

    of_the_clone = f"{clone.folder}/configs/digits.py:small"
    assert main_saw(elsewhere) == [str(elsewhere), "--config", of_the_clone, *arguments[2:]]
    joined = clone.launch("--config=configs/digits.py", cwd=elsewhere).stdout.split("\n")
    assert joined[1] == f"--config={clone.folder}/configs/digits.py"

    (elsewhere / "configs").mkdir()
    (elsewhere / "configs/digits.py").touch()
    assert main_saw(elsewhere) == [str(elsewhere), *arguments], "the caller's own file comes first"


@pytest.mark.parametrize(
    ("capability", "driver", "extra"),
    [("9.0", "580.65.06", "[cuda]"), ("9.0", "570.133.20", "[cuda12]"), ("7.0", "580.65.06", "[cuda12]")],
)
def test_the_cuda_build_fits_the_driver_and_the_gpu(clone, capability, driver, extra):
    clone.tool("nvidia-smi", f'[ "$1" = -L ] && echo "GPU 0: some (UUID: GPU-1)" || echo "{capability}, {driver}"')
    clone.launch()
    assert clone.recorded() == ["venv", f"pip {extra}"]
    clone.launch(DIFFUSION_JAX_ACCELERATOR="cpu")
    assert clone.recorded() == ["venv", "pip "]


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("DIFFUSION_JAX_ACCELERATOR", "gpu", "it can be cpu, cuda, cuda12 or tpu"),
        ("PYTHON", "/nowhere/python", "is not a Python 3.11, 3.12 or 3.13"),
    ],
)
def test_a_wrong_setting_is_one_clear_line(clone, variable, value, says):
    result = clone.launch(**{variable: value})
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1 and value in result.stderr and says in result.stderr
    assert not (clone.folder / ".venv").exists()

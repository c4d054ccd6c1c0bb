"""Imports point one way (the contracts are in pyproject.toml), and the core runs without the rest."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parent.parent
LINT = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"


def lint_imports(folder: Path) -> subprocess.CompletedProcess:
    # the folder's own package, whichever one is installed
    return subprocess.run(
        [sys.executable, "-c", LINT], cwd=folder, capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"}
    )


def test_every_import_keeps_to_the_layers():
    result = lint_imports(REPO)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("models/extra.py", "from diffusion_jax.diffusion import process"),  # neighbours do not know each other
        ("diffusion/extra.py", "import diffusion_jax.methods"),  # nor the layer above
        ("training/extra.py", "import diffusion_jax.models"),
        ("metrics/extra.py", "def late():\n    import matplotlib.pyplot"),
        ("hub/extra.py", "import torch"),
        ("hub/extra.py", "def late():\n    from diffusion_jax.jobs import export"),  # the package has a door
        ("hub/extra.py", "from diffusion_jax import __version__"),  # through which nothing below jobs may look
        ("utilities.py", ""),  # a module without a place
    ],
)
def test_the_contracts_notice(tmp_path, file, line):
    shutil.copy(REPO / "pyproject.toml", tmp_path)
    shutil.copytree(REPO / "diffusion_jax", tmp_path / "diffusion_jax", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "diffusion_jax" / file).write_text(line + "\n")
    result = lint_imports(tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    assert Path(file).stem in result.stdout


def test_no_import_is_hidden_from_the_contracts():
    """Modules of this project are named by import statements; the registries go through what lies in their folders."""
    hidden = [
        f"{path.name}: {line.strip()}"
        for path in (REPO / "diffusion_jax").rglob("*.py")
        for line in path.read_text().splitlines()
        if "import_module(" in line and re.search(r"""["']diffusion_jax""", line)
    ]
    assert not hidden


CORE = ("diffusion_jax.models", "diffusion_jax.diffusion", "diffusion_jax.metrics")
NOT_ON_A_BARE_JAX = {
    "array_record",
    "clu",
    "diffusers",
    "gradio",
    "grain",
    "matplotlib",
    "ml_collections",
    "orbax",
    "tensorboardX",
    "tensorflow",
    "tensorflow_datasets",
    "torch",
    "transformers",
}
IMPORT_ALL = """
import importlib, pkgutil, sys
package = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    if not module.name.endswith(".__main__"):
        importlib.import_module(module.name)
print(*sorted({name.split(".")[0] for name in sys.modules}))
"""


@pytest.mark.parametrize("package", CORE)
def test_the_core_imports_nothing_that_a_bare_jax_lacks(package):
    result = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, package], cwd=REPO, capture_output=True, text=True, check=True
    )
    imported = result.stdout.split()
    assert "jax" in imported
    assert not NOT_ON_A_BARE_JAX & set(imported)


def test_importing_the_package_imports_nothing_else():
    """Not even of Python itself: its version, and the table of what opens runs and data sets."""
    program = "import sys; before = set(sys.modules); import diffusion_jax; print(*set(sys.modules) - before)"
    result = subprocess.run([sys.executable, "-c", program], cwd=REPO, capture_output=True, text=True, check=True)
    assert set(result.stdout.split()) == {"diffusion_jax", "diffusion_jax.openers", "diffusion_jax.version"}

"""docs/how_to_add.md is true: its files are as many as it says, and they run, in a copy of the package."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "how_to_add.md").read_text(encoding="utf-8")
SECTION = re.compile(r"^## (?:An? )?(.+?)(?:: (\d+) files)?$", re.M)
FILE = re.compile(r"^File `([^`]+)`:\n\n```python\n(.*?)^```", re.M | re.S)
LINES = re.compile(r"^```diff\n--- (\S+)\n(.*?)^```", re.M | re.S)


def sections():
    """name -> (number of files that it says, its text)."""
    found = list(SECTION.finditer(PAGE))
    ends = [match.start() for match in found[1:]] + [len(PAGE)]
    return {m[1]: (int(m[2] or 0), PAGE[m.end() : end]) for m, end in zip(found, ends, strict=True)}


def inserted(text, lines):
    """The text with the lines that begin with + after the one that begins with a space before them."""
    place = ""
    for line in lines.splitlines():
        if line.startswith(" "):
            place = line[1:]
            assert text.count(f"{place}\n") == 1, place
        else:
            text = text.replace(f"{place}\n", f"{place}\n{line[1:]}\n")
            place = line[1:]
    return text


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the package with everything on the page in it."""
    root = tmp_path_factory.mktemp("house")
    for folder in ("diffusion_jax", "configs"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for path, content in FILE.findall(PAGE):
        assert not (root / path).exists(), path
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_text(content, encoding="utf-8")
    for path, lines in LINES.findall(PAGE):
        changed = inserted((root / path).read_text(encoding="utf-8"), lines)
        (root / path).write_text(changed, encoding="utf-8")
    return root


def command(root, *arguments):
    environment = {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu", "HOME": str(root), "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        [sys.executable, "-P", "-m", "diffusion_jax.main", *arguments],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_addition_touches_as_many_files_as_the_page_says():
    wanted = {"network": 2, "solver": 2, "dataset": 2, "condition": 3, "metric": 2, "method": 2, "job": 2}
    assert {name: count for name, (count, _) in sections().items() if count} == wanted
    for name, (count, text) in sections().items():
        touched = {path for path, _ in (*FILE.findall(text), *LINES.findall(text))}
        if name == "condition":  # with the source and the network above
            touched |= {"diffusion_jax/data/sources/squares.py", "diffusion_jax/models/line.py"}
        assert not count or len(touched) == count, (name, touched)
        own = {"job": "diffusion_jax/jobs/"}.get(name)
        for path in touched:
            assert not path.startswith(("diffusion_jax/jobs/", "diffusion_jax/config/")) or path.startswith(own or "-")


def test_network_solver_dataset_condition_in_one_run(copy):
    done = command(copy, "--config", "configs/squares.py", "--workdir", "runs/squares")
    assert done.returncode == 0, done.stderr
    with np.load(copy / "runs" / "squares" / "samples.npz") as saved:
        levels = saved["arr_0"].reshape(8, -1).mean(1)
    np.testing.assert_array_equal(levels > 128, np.arange(8) % 2 == 1)  # what was asked for, in words
    page = (copy / "runs" / "squares" / "report.html").read_text(encoding="utf-8")
    assert "sampled with leap in 4 steps" in page


def test_method_metric_and_job(copy):
    run = ("--config", "configs/mean_image.py", "--workdir", "runs/mean", "--config.method.noise=0.2")
    done = command(copy, *run)
    assert done.returncode == 0, done.stderr
    for product in ("config.json", "metrics.jsonl", "samples.png", "sampling.gif", "evaluation.json", "report.html"):
        assert (copy / "runs" / "mean" / product).stat().st_size, product
    page = (copy / "runs" / "mean" / "report.html").read_text(encoding="utf-8")
    assert "epsilon" not in page and "A model of images of 8x8 pixels" in page
    rows = [json.loads(line) for line in (copy / "runs" / "mean" / "metrics.jsonl").read_text().splitlines()]
    assert any(name.startswith("gap") for row in rows for name in row)
    counted = command(copy, *run, "--mode", "count")
    assert counted.returncode == 0, counted.stderr
    assert json.loads((copy / "runs" / "mean" / "count.json").read_text()) == {"checkpoints": 1}
    told = command(copy, "--help", "--config", "configs/mean_image.py").stdout
    assert "standard deviation of what is added to the mean" in told and "count the checkpoints" in told
    assert "config.process" not in told

"""Nothing that the package reads can run code: no eval, no pickle, no shell, anywhere in it."""

import ast
from pathlib import Path

import pytest

REPO = Path(__file__).parent.parent
FILES = sorted(path for folder in ("diffusion_jax", "configs", "benchmarks") for path in (REPO / folder).rglob("*.py"))
# They run what they read, or pass it on to what does.
MODULES = {"cloudpickle", "code", "dill", "joblib", "marshal", "pickle", "_pickle", "shelve"}
FUNCTIONS = {"__import__", "compile", "eval", "exec", "input"}
ATTRIBUTES = {("os", "system"), ("os", "popen"), ("torch", "load"), ("yaml", "load"), ("yaml", "unsafe_load")}


def dangers(source: str) -> list[str]:
    """What in a file could run what it reads, as "line: what"."""
    found = []
    for node in ast.walk(ast.parse(source)):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import | ast.ImportFrom):
            named = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            found += [f"{line}: import {name}" for name in named if name.split(".")[0] in MODULES]
        if not isinstance(node, ast.Call):
            continue
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        for flag in ("allow_pickle", "shell"):
            value = keywords.get(flag)
            if value is not None and not (isinstance(value, ast.Constant) and value.value is False):
                found.append(f"{line}: {flag}={ast.unparse(value)}")
        if isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS:
            found.append(f"{line}: {node.func.id}()")
        if isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
            name = (node.func.value.id, node.func.attr)
            found += [f"{line}: {'.'.join(name)}()"] if name in ATTRIBUTES else []
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPO)))
def test_nothing_that_is_read_is_run(path):
    assert not dangers(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "import numpy as np; np.load('x', allow_pickle=True)",
        "eval('1')",
        "exec(text)",
        "__import__('os')",
        "import os; os.system('ls')",
        "import subprocess; subprocess.run('ls', shell=yes)",
        "import yaml; yaml.load(text)",
    ],
)
def test_the_scan_notices(line):
    assert dangers(line)


@pytest.mark.parametrize("line", ["jax.eval_shape(f)", "re.compile('x')", "np.load('x', allow_pickle=False)"])
def test_the_scan_lets_pass_what_is_harmless(line):
    assert not dangers(line)

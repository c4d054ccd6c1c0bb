"""What the docs name exists: tests, files and links."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "benchmarks" / "RESULTS.md"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_that_a_page_names_exists(page):
    for path, name in re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", page.read_text(encoding="utf-8")):
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), f"{page.name}: {path}::{name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http:", "https:")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_pitfalls_each_name_a_test():
    rows = [line for line in (ROOT / "docs" / "pitfalls.md").read_text(encoding="utf-8").splitlines() if "|" in line]
    points = [row for row in rows if not row.startswith(("| point", "|---"))]
    assert len(points) > 25
    for row in points:
        assert "::test_" in row.rsplit("|", 2)[1], row


def test_the_readme_names_no_machine_or_registry():
    for page in PAGES:
        assert not re.search(r"/simple/|/work/|index-url", page.read_text(encoding="utf-8")), page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_such_that_they_work_from_a_fresh_clone(page):
    # outside of .venv, python knows nothing of the project
    assert not re.findall(
        r"python -m diffusion_jax(?!\.main` and its like, in `.venv`)", page.read_text(encoding="utf-8")
    )

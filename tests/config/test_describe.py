"""The help has a whole text for every field of every variant."""

import re

import pytest

from diffusion_jax import config as experiment
from diffusion_jax.config import describe
from diffusion_jax.methods.registry import METHODS

# What is said of a thing and not of the program: no file, module or function of the project.
INTERNAL = re.compile(r"\.py\b|\bgrid\.|`|diffusion_jax/|:mod:|\b[a-z]+_on\b|\bsee\b")


def variants():
    """(section, choice, variants) of every section of every method."""
    config = experiment.default()
    seen = {}
    for method in METHODS:
        config.method.name = method
        for name, section in config.sections():
            for choice in section.variants.constructors:
                seen[name, choice, id(section.variants)] = (name, choice, section.variants)
    return list(seen.values())


@pytest.mark.parametrize(("name", "choice", "found"), variants(), ids=lambda value: value if value is str else None)
def test_every_field_has_a_text(name, choice, found):
    for field, option in found.options(choice).items():
        place = f"{name}.{field} of {choice!r}"
        assert 5 <= len(option.text) <= 160, place
        assert option.text.count("(") == option.text.count(")") and not option.text.endswith((".", ",", ";")), place
        assert not INTERNAL.search(option.text), place


def test_no_line_is_long():
    config = experiment.default()
    for method in METHODS:
        config.method.name = method
        for line in describe.help_text(config).splitlines():
            assert len(line) <= describe.WIDTH

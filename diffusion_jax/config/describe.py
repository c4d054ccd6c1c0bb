"""What each field of a config means, in one sentence, from where it is said already.

Fields that belong to a constructor are described by its docstring, those that name one by the names that there are, the
others by the comments beside them in schema.default.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

from diffusion_jax.config import schema
from diffusion_jax.options import options

_COMMENT = re.compile(r"^    config\.([\w.]+) = .*?  # (.*)$", re.MULTILINE)
# "  name: text", "- name, other_name: text" and the lines of the same paragraph that are indented further.
_ITEM = re.compile(r"^( *)(?:- )?(\w+(?:, \w+)*): (.+(?:\n\1 +\S.*)*)", re.MULTILINE)
_SENTENCE = re.compile(r"(.+?)(?:(?<!et al)\. |\.$|$)")
_MARKUP = re.compile(r":\w+:(?=`)|`")


def descriptions() -> dict[str, str]:
    """Path of a field -> a sentence, for the fields of which something is said."""
    described = {}
    for section, constructors in _constructors():
        for constructor in constructors:
            for name, text in _documented(constructor).items():
                described.setdefault(f"{section}.{name}", text)
    names = {f"{section}.name": ", ".join(registry) for section, (registry, _) in schema.NAMED_SECTIONS.items()}
    return described | names | dict(_COMMENT.findall(inspect.getsource(schema.default)))


def _constructors() -> Iterator[tuple[str, list[Callable[..., Any]]]]:
    for section, (constructor, _) in schema.PLAIN_SECTIONS.items():
        yield section, [constructor]
    for section, (registry, _) in schema.NAMED_SECTIONS.items():
        yield section, list(registry.values())


def _documented(constructor: Callable[..., Any]) -> dict[str, str]:
    """Parameter -> the first sentence that the docstring says of it."""
    known = inspect.signature(constructor).parameters
    found = {}
    for _, names, text in _ITEM.findall(inspect.getdoc(constructor) or ""):
        sentence = _SENTENCE.match(_MARKUP.sub("", " ".join(text.split())))
        for name in names.split(", "):
            if name in known and sentence:
                found[name] = sentence[1]
    return found | {name: option.text for name, option in options(constructor).items() if option.text}

"""The notation for weights, as users of the web interfaces know it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_jax.models.text import emphasis


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a cat", [("a cat", 1.0)]),
        ("", [("", 1.0)]),
        ("a (red:1.3) cat", [("a ", 1.0), ("red", 1.3), (" cat", 1.0)]),
        ("((big)) [dog]", [("big", 1.21), (" ", 1.0), ("dog", 1 / 1.1)]),
        (r"a \(b\) \[c\]", [("a (b) [c]", 1.0)]),
        ("(open (twice", [("open ", 1.1), ("twice", 1.21)]),
        ("((a:1.5) b)", [("a", 1.65), (" b", 1.1)]),
        ("note: (a) b)", [("note: ", 1.0), ("a", 1.1), (" b)", 1.0)]),
        ("(a:b)", [("a:b", 1.1)]),
        ("(word : 0.5)", [("word ", 0.5)]),
        ("(cat:2.)", [("cat", 2.0)]),
        ("(cat:.5)", [("cat", 0.5)]),
        ("(cat:+2)", [("cat", 2.0)]),
        ("(cat:2.5.1)", [("cat:2.5.1", 1.1)]),
        (r"back\slash", [("back\\slash", 1.0)]),
    ],
)
def test_pieces(prompt, expected):
    pieces = emphasis.parse(prompt)
    assert [text for text, _ in pieces] == [text for text, _ in expected]
    assert [weight for _, weight in pieces] == pytest.approx([weight for _, weight in expected])


@given(st.text(alphabet="ab :.0123456789", max_size=30))
def test_text_without_brackets_is_left_alone(prompt):
    assert emphasis.parse(prompt) == [(prompt, 1.0)]


@given(st.text(alphabet="ab()[]:\\1.", max_size=30))
def test_any_text_is_read(prompt):
    pieces = emphasis.parse(prompt)
    assert pieces and all(weight > 0 or ":" in prompt for _, weight in pieces)

import numpy as np
import pytest

from diffusion_jax.data import to_float, to_uint8

LEVELS = np.arange(256, dtype=np.uint8)


def test_ends_of_the_range_are_exact():
    assert to_float(LEVELS).dtype == np.float32
    assert to_float(LEVELS)[0] == -1
    assert to_float(LEVELS)[255] == 1
    np.testing.assert_allclose(to_float(LEVELS), np.arange(256) / 127.5 - 1, atol=1e-7)


def test_half_up_undoes_to_float():
    np.testing.assert_array_equal(to_uint8(to_float(LEVELS)), LEVELS)


@pytest.mark.parametrize(("rounding", "expected"), [("half_up", [10, 10, 11, 11]), ("floor", [10, 10, 10, 10])])
def test_rounding_between_two_levels(rounding, expected):
    between = np.array([10.01, 10.49, 10.51, 10.99]) / 127.5 - 1
    np.testing.assert_array_equal(to_uint8(between, rounding), expected)


def test_values_outside_are_clipped():
    np.testing.assert_array_equal(to_uint8(np.array([-7.0, -1.001, 1.001, np.inf])), [0, 0, 255, 255])


@pytest.mark.parametrize(
    ("images", "rounding", "message"),
    [
        (LEVELS, "half_up", "must be float"),
        (np.array([0.0, np.nan]), "half_up", "NaN"),
        (np.zeros(2), "nearest", "half_up, floor"),
    ],
)
def test_what_cannot_be_quantised(images, rounding, message):
    with pytest.raises(ValueError, match=message):
        to_uint8(images, rounding)


def test_only_bytes_become_floats():
    with pytest.raises(ValueError, match="int64"):
        to_float(np.zeros(2, np.int64))

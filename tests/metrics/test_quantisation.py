"""How generated images become levels."""

import jax
import numpy as np
import pytest

from diffusion_jax import data
from diffusion_jax.metrics import quantisation

X = np.linspace(-1.2, 1.2, 4001, dtype=np.float32).reshape(1, 1, -1, 1)


@pytest.mark.parametrize("rule", ["half_up", "floor"])
def test_levels_are_those_of_files(rule):
    """The same on the device as in the files that sampling writes."""
    np.testing.assert_array_equal(jax.jit(quantisation.quantised, static_argnums=1)(X, rule), data.to_uint8(X, rule))


def test_none_clips_and_leaves_the_fractions():
    found = quantisation.quantised(np.array([-2, -1, -0.5, 0, 0.3, 1, 7], np.float32), "none")
    np.testing.assert_allclose(found, [0, 0, 63.75, 127.5, 165.75, 255, 255])
    assert found.dtype == np.float32


def test_every_rule_is_known():
    with pytest.raises(ValueError, match="'ceil' is unknown; it can be half_up, floor, none"):
        quantisation.quantised(X, "ceil")

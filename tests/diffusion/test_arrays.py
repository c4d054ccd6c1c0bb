"""Small helpers that the mathematics shares."""

import jax
import numpy as np
import pytest

from diffusion_jax.diffusion.arrays import standard_normal


@pytest.mark.parametrize("shape", [(), (7,), (5, 3, 2), (1, 32, 32, 3)])
def test_drawing_flat_gives_the_numbers_of_jax_random(shape):
    key = jax.random.key(3)
    np.testing.assert_array_equal(standard_normal(key, shape), jax.random.normal(key, shape))

"""Seeds of 64 bits: each its own key, and those of 32 bits the keys that JAX gives them."""

import jax
import numpy as np
import pytest

from diffusion_jax.diffusion.arrays import key_of_seed

SEEDS = (0, 1, 2**32 - 1, 2**32, 2**32 + 1, 2**63, 2**64 - 1)


def test_every_seed_has_a_key_of_its_own():
    keys = [tuple(np.asarray(jax.random.key_data(key_of_seed(seed))).tolist()) for seed in SEEDS]
    assert len(set(keys)) == len(SEEDS)


def test_small_seeds_are_those_of_jax():
    for seed in SEEDS[:3]:
        assert key_of_seed(seed) == jax.random.key(np.uint32(seed))


def test_large_seeds_are_those_of_jax_with_64_bits():
    with jax.enable_x64(True):
        expected = np.asarray(jax.random.key_data(jax.random.key(2**63 - 25)))
    np.testing.assert_array_equal(jax.random.key_data(key_of_seed(2**63 - 25)), expected)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, True, "3"])
def test_what_is_no_seed_is_refused(seed):
    with pytest.raises(ValueError, match=r"it must be a whole number from 0 to 2\^64 - 1"):
        key_of_seed(seed)

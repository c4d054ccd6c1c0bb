import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_jax.training import ema, power_ema
from diffusion_jax.training.power_ema import Profile


def weights(sigma_rel, steps):
    """The share of each update in the average after all of them, by the definition: the integral of t^gamma over it."""
    edges = np.arange(steps + 1, dtype=np.float64) ** (power_ema.exponent(sigma_rel) + 1)
    return np.diff(edges) / edges[-1]


@given(st.floats(0.005, power_ema.WIDEST))
def test_exponent_and_width_are_inverses(sigma_rel):
    gamma = power_ema.exponent(sigma_rel)
    assert gamma >= -1e-6
    assert power_ema.width(gamma) == pytest.approx(sigma_rel, rel=1e-9)


def test_exponents_of_the_paper():
    """Section 3.1: widths 0.05 and 0.10 are exponents 16.97 and 6.94."""
    assert power_ema.exponent(0.05) == pytest.approx(16.97, abs=0.005)
    assert power_ema.exponent(0.10) == pytest.approx(6.94, abs=0.005)


@pytest.mark.parametrize("sigma_rel", [0.03, 0.1, 0.28])
def test_the_width_is_the_standard_deviation_of_the_weights(sigma_rel):
    steps = 20_000
    shares, times = weights(sigma_rel, steps), (np.arange(steps) + 0.5) / steps
    mean = shares @ times
    assert np.sqrt(shares @ (times - mean) ** 2) == pytest.approx(sigma_rel, rel=1e-4)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.25])
def test_decays_give_the_profile(sigma_rel):
    """Averaging the unit vectors shows the weight of every update."""
    steps, decay = 60, ema.make_ema("power", sigma_rel=sigma_rel)
    average = np.full(steps, 7.0)  # whatever the average began with is forgotten
    for step in range(steps):
        kept = float(decay(jnp.int32(step)))
        average = kept * average + (1 - kept) * np.eye(steps)[step]
    np.testing.assert_allclose(average, weights(sigma_rel, steps), atol=1e-6)
    assert average.sum() == pytest.approx(1, abs=1e-6)


def test_late_decays_keep_their_distance_from_one():
    steps, gamma = 2_000_000, power_ema.exponent(0.05)
    kept = np.float64(power_ema.decay(gamma, jnp.int32(steps)))
    assert 1 - kept == pytest.approx(-np.expm1((gamma + 1) * np.log(steps / (steps + 1))), rel=0.01)


def test_inner_products_are_integrals():
    a, b = [Profile(40, 0.05), Profile(100, 0.2)], [Profile(100, 0.1), Profile(40, 0.05), Profile(70, 0.28)]
    times = (np.arange(400_000) + 0.5) * (100 / 400_000)

    def density(profile):
        gamma = power_ema.exponent(profile.sigma_rel)
        return np.where(times < profile.step, (gamma + 1) * (times / profile.step) ** gamma / profile.step, 0)

    expected = [[np.sum(density(x) * density(y)) * (100 / 400_000) for y in b] for x in a]
    np.testing.assert_allclose(power_ema.inner_products(a, b), expected, rtol=1e-3)


TRACKED = [Profile(step, sigma_rel) for step in range(50, 1001, 50) for sigma_rel in (0.05, 0.1)]


@pytest.mark.parametrize("number", [0, 17, 39])
def test_a_tracked_profile_is_itself(number):
    found = power_ema.coefficients(TRACKED, TRACKED[number])
    np.testing.assert_allclose(found, np.eye(len(TRACKED))[number], atol=1e-6)


@pytest.mark.parametrize("wanted", [Profile(1000, s) for s in (0.04, 0.07, 0.15, 0.2)])
def test_snapshots_span_other_profiles(wanted):
    """A sum of tracked profiles is the wanted one, update by update."""
    found = power_ema.coefficients(TRACKED, wanted)
    shares = np.zeros(1000)
    for coefficient, profile in zip(found, TRACKED, strict=True):
        shares[: profile.step] += coefficient * weights(profile.sigma_rel, profile.step)
    expected = weights(wanted.sigma_rel, 1000)
    assert np.linalg.norm(shares - expected) < 0.02 * np.linalg.norm(expected)
    assert found.sum() == pytest.approx(1)
    # The nearest tracked profile alone would not do.
    alone = min(np.linalg.norm(weights(sigma_rel, 1000) - expected) for sigma_rel in (0.05, 0.1))
    assert alone > 0.1 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sigma_rels": ()}, "posthoc_ema.sigma_rels is .*at least one width"),
        ({"sigma_rels": (0.1, 0.1)}, "posthoc_ema.sigma_rels is .*each once"),
        ({"sigma_rels": (0.05, 0.3)}, r"posthoc_ema.sigma_rels is 0.3; it must be above 0 and at most 0.2887"),
        ({"snapshot_every": 0}, "posthoc_ema.snapshot_every is 0"),
    ],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        power_ema.PosthocEMA(**arguments)

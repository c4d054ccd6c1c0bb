"""Games against their formulas in NumPy, and penalties against closed forms, all in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.methods.gan import penalties
from diffusion_jax.methods.gan.losses import GAMES

RNG = np.random.default_rng(0)
SHAPE, COUNT = (4, 3, 2), 5
SIZE = int(np.prod(SHAPE))
REAL, FAKE = RNG.standard_normal((2, COUNT, *SHAPE))
LINE = RNG.standard_normal(SHAPE)
FORM = RNG.standard_normal((SIZE, SIZE))


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def linear(images):
    return jnp.sum(images * jnp.asarray(LINE), (1, 2, 3)) + 3


def quadratic(images):
    """x^T A x / 2, with gradient (A + A^T) x / 2."""
    flat = images.reshape(len(images), -1)
    return jnp.einsum("ni,ij,nj->n", flat, jnp.asarray(FORM), flat) / 2


def quadratic_gradient(images):
    return images.reshape(len(images), -1) @ (FORM + FORM.T) / 2


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


# (the discriminator's loss, the generator's) of logits of real images r and of generated ones f, as the papers write it
FORMULAS = {
    "non_saturating": (
        lambda r, f: -np.log(sigmoid(r)) - np.log(1 - sigmoid(f)),
        lambda r, f: -np.log(sigmoid(f)),
    ),
    "wasserstein": (lambda r, f: f - r, lambda r, f: -f),
    "hinge": (lambda r, f: -np.minimum(0, -1 + r) - np.minimum(0, -1 - f), lambda r, f: -f),
    "relativistic": (lambda r, f: -np.log(sigmoid(r - f)), lambda r, f: -np.log(sigmoid(f - r))),
}


@pytest.mark.parametrize("name", GAMES)
def test_games_are_the_papers_formulas(name):
    real, fake = 3 * RNG.standard_normal((2, 50))
    game = GAMES[name]
    for loss, formula in zip((game.discriminator, game.generator), FORMULAS[name], strict=True):
        np.testing.assert_allclose(loss(jnp.asarray(real), jnp.asarray(fake)), formula(real, fake), atol=1e-12)


@pytest.mark.parametrize("name", GAMES)
def test_a_generator_wins_by_higher_logits_and_large_ones_are_no_overflow(name):
    game = GAMES[name]
    by_fake = jax.grad(lambda fake: game.generator(jnp.zeros(1), fake).sum())(jnp.zeros(1))
    by_both = jax.grad(lambda real, fake: game.discriminator(real, fake).sum(), (0, 1))(jnp.zeros(1), jnp.zeros(1))
    assert by_fake < 0 and by_both[0] < 0 < by_both[1]
    for far in (-1e4, 1e4):
        assert np.isfinite(game.discriminator(jnp.float64(far), jnp.float64(-far)))
        assert np.isfinite(game.generator(jnp.float64(far), jnp.float64(-far)))


def test_whether_only_differences_count_is_what_the_loss_says():
    real, fake = RNG.standard_normal((2, 9))
    for name, game in GAMES.items():
        moved = game.discriminator(jnp.asarray(real + 2), jnp.asarray(fake + 2))
        is_unmoved = np.allclose(moved, game.discriminator(jnp.asarray(real), jnp.asarray(fake)))
        assert is_unmoved == game.is_relative, name


@pytest.mark.parametrize("images", [REAL, FAKE], ids=["R1", "R2"])
def test_squared_slopes_are_the_closed_forms(images):
    logits, squares = penalties.logits_and_slopes(linear, jnp.asarray(images))
    np.testing.assert_allclose(logits, (images * LINE).sum((1, 2, 3)) + 3, atol=1e-10)
    np.testing.assert_allclose(squares, np.full(COUNT, np.square(LINE).sum()), atol=1e-10)
    _, squares = penalties.logits_and_slopes(quadratic, jnp.asarray(images))
    np.testing.assert_allclose(squares, np.square(quadratic_gradient(images)).sum(1), rtol=1e-10)


def test_the_gradient_penalty_is_the_closed_form_between_the_images():
    shares = RNG.uniform(size=COUNT)
    arguments = jnp.asarray(REAL), jnp.asarray(FAKE), jnp.asarray(shares)
    steepness = np.sqrt(np.square(LINE).sum())
    np.testing.assert_allclose(penalties.gradient_penalty(linear, *arguments), (steepness - 1) ** 2, atol=1e-10)
    between = shares[:, None, None, None] * REAL + (1 - shares[:, None, None, None]) * FAKE
    slopes = np.linalg.norm(quadratic_gradient(between), axis=1)
    np.testing.assert_allclose(penalties.gradient_penalty(quadratic, *arguments, 0.5), (slopes - 0.5) ** 2, rtol=1e-10)


def test_penalties_are_learnt_from():
    """Of D(x) = w . x, R1 is |w|^2 with gradient 2 w, and the penalty's gradient is 2 (|w| - 1) w / |w|; 0 at w = 0."""

    def of(penalty, line):
        return jax.grad(lambda w: penalty(lambda images: jnp.sum(images * w, (1, 2, 3))).mean())(jnp.asarray(line))

    def r1(judge):
        return penalties.logits_and_slopes(judge, jnp.asarray(REAL))[1]

    def between(judge):
        return penalties.gradient_penalty(judge, jnp.asarray(REAL), jnp.asarray(FAKE), jnp.full(COUNT, 0.5))

    norm = np.linalg.norm(LINE)
    np.testing.assert_allclose(of(r1, LINE), 2 * LINE, atol=1e-10)
    np.testing.assert_allclose(of(between, LINE), 2 * (norm - 1) / norm * LINE, atol=1e-10)
    np.testing.assert_array_equal(of(between, 0 * LINE), 0)


def test_path_lengths_of_a_linear_generator_are_the_norms_of_its_transpose():
    matrix = RNG.standard_normal((SIZE, 7))
    styles, directions = RNG.standard_normal((COUNT, 7)), RNG.standard_normal((COUNT, *SHAPE))
    lengths = penalties.path_lengths(
        lambda styles: (styles @ jnp.asarray(matrix).T).reshape(-1, *SHAPE),
        jnp.asarray(styles),
        jnp.asarray(directions),
    )
    expected = np.linalg.norm(directions.reshape(COUNT, -1) @ matrix, axis=1)
    np.testing.assert_allclose(lengths, expected, rtol=1e-10)
    np.testing.assert_allclose(penalties.path_length_penalty(lengths, 2.0), (expected - 2) ** 2, rtol=1e-10)

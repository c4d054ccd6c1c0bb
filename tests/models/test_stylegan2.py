"""StyleGAN2's layers against SciPy and NumPy in float64, and its networks' wiring."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from diffusion_jax.models import equalized, modulated, stylegan2
from diffusion_jax.models.modulated import modulated_convolution
from diffusion_jax.models.stylegan2 import Mapping, StyleGAN2Discriminator, StyleGAN2Generator
from diffusion_jax.models.upfirdn import upfirdn

RNG = np.random.default_rng(0)
BLUR = np.outer(equalized.BLUR, equalized.BLUR) / 64
SMALL = {"channels": 4, "max_channels": 8, "num_classes": 3}
GENERATOR = StyleGAN2Generator(image_size=8, out_channels=2, latent_dim=6, style_dim=5, mapping_depth=1, **SMALL)
LATENTS, LABELS = jax.random.normal(jax.random.key(1), (4, 6)), jnp.array([0, 1, 2, 0])
NOISE_KEYS = jax.random.split(jax.random.key(2), 4)


def correlate(image, kernel, pad=0):
    """One image [H, W, in] with a kernel [k, k, in, out], where it fits whole."""
    image = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    return np.stack(
        [
            sum(scipy.signal.correlate2d(image[..., i], kernel[..., i, o], "valid") for i in range(image.shape[-1]))
            for o in range(kernel.shape[-1])
        ],
        -1,
    )


def spread(image):
    """Zeros between the pixels of [H, W, C]."""
    wide = np.zeros((2 * image.shape[0] - 1, 2 * image.shape[1] - 1, image.shape[2]))
    wide[::2, ::2] = image
    return wide


def blurred(image, pad):
    image = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    return np.stack([scipy.signal.convolve2d(image[..., c], BLUR, "valid") for c in range(image.shape[-1])], -1)


@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2), (3, 2)])
def test_resampling_is_scipys_along_each_axis(up, down):
    taps = np.array([1.0, 4.0, 2.0, 0.5, 3.0])
    x = RNG.standard_normal((2, 7, 6, 3))
    expected = x
    for axis in (1, 2):
        expected = scipy.signal.upfirdn(taps / taps.sum(), expected, up, down, axis=axis)
    with jax.enable_x64(True):
        # SciPy's convolution begins with the first tap alone, and has no zeros behind the last pixel.
        actual = upfirdn(jnp.asarray(x), taps, up, down, border=(4, 4))
    rows, columns = expected.shape[1:3]
    np.testing.assert_allclose(actual[:, :rows, :columns], expected, atol=1e-12)
    for extra in (actual[:, rows:], actual[:, :, columns:]):
        np.testing.assert_allclose(extra, 0, atol=1e-12)


def test_convolutions_up_and_down_are_those_of_the_paper():
    x, kernel = RNG.standard_normal((6, 4, 3)), RNG.standard_normal((3, 3, 3, 2))
    with jax.enable_x64(True):
        up = equalized.convolve_up(jnp.asarray(x)[None], jnp.asarray(kernel))[0]
        down = equalized.convolve_down(jnp.asarray(x)[None], jnp.asarray(kernel))[0]
        skip = equalized.convolve_down(jnp.asarray(x)[None], jnp.asarray(kernel[:1, :1]))[0]
    assert (up.shape, down.shape) == ((12, 8, 2), (3, 2, 2))
    np.testing.assert_allclose(up, 4 * blurred(correlate(spread(x), kernel, pad=2), pad=1), atol=1e-12)
    np.testing.assert_allclose(down, correlate(blurred(x, pad=2), kernel)[::2, ::2], atol=1e-12)
    np.testing.assert_allclose(skip, correlate(blurred(x, pad=1), kernel[:1, :1])[::2, ::2], atol=1e-12)


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("demodulate", [False, True])
def test_a_modulated_convolution_is_one_with_a_kernel_for_each_image(demodulate, up):
    x, kernel = RNG.standard_normal((3, 5, 4, 3)), RNG.standard_normal((3, 3, 3, 2))
    scales = 1 + RNG.standard_normal((3, 3))
    expected = []
    for image, scale in zip(x, scales, strict=True):
        own = kernel * scale[:, None]
        if demodulate:
            own = own / np.sqrt(np.square(own).sum((0, 1, 2)) + 1e-8)
        expected.append(4 * blurred(correlate(spread(image), own, 2), 1) if up else correlate(image, own, 1))
    with jax.enable_x64(True):
        actual = modulated_convolution(jnp.asarray(x), jnp.asarray(kernel), jnp.asarray(scales), demodulate, up)
    np.testing.assert_allclose(actual, expected, atol=1e-12)


def test_demodulated_features_have_variance_one():
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(0), (2, 66, 66, 8))
        kernel, scales = jax.random.normal(jax.random.key(1), (3, 3, 8, 4)), jnp.array([[5.0], [0.2]]) * jnp.ones(8)
        inner = np.asarray(modulated_convolution(x, kernel, scales))[:, 1:-1, 1:-1]
        without = np.asarray(modulated_convolution(x, kernel, scales, demodulate=False))
    np.testing.assert_allclose(inner.var((1, 2)), 1, atol=0.1)
    assert without.var() > 100


@pytest.mark.parametrize(("batch", "group", "used"), [(8, 4, 4), (6, 4, 2), (3, 4, 1)])
def test_the_spread_of_a_batch_is_numpys(batch, group, used):
    x = RNG.standard_normal((batch, 3, 2, 5))
    with jax.enable_x64(True):
        actual = np.asarray(stylegan2.minibatch_deviation(jnp.asarray(x), group))
    np.testing.assert_array_equal(actual[..., :-1], x)
    for first in range(batch // used):
        members = range(first, batch, batch // used)
        deviation = np.sqrt(x[members].var(axis=0) + 1e-8).mean()
        np.testing.assert_allclose(actual[members, ..., -1], deviation, atol=1e-12)


def test_equalised_layers_scale_their_weights_when_they_are_used():
    layer = equalized.EqualizedDense(4096, learning_rate=0.01, bias_value=1.0)
    x = jax.random.normal(jax.random.key(0), (1, 64))
    params = layer.init(jax.random.key(1), x)["params"]
    assert abs(float(params["kernel"].std()) - 100) < 1 and float(params["bias"][0]) == 100
    np.testing.assert_allclose(
        layer.apply({"params": params}, x), x @ (params["kernel"] * 0.01 / 8) + 1, rtol=1e-5, atol=1e-5
    )
    # As an update moves a weight by about the rate whatever its gradient, a weight of 100 moves little.
    convolution = equalized.EqualizedConv(256)
    image = jax.random.normal(jax.random.key(0), (2, 8, 8, 16))
    fresh = convolution.init(jax.random.key(1), image)
    assert abs(float(fresh["params"]["kernel"].std()) - 1) < 0.02
    assert abs(float(convolution.apply(fresh, image)[:, 1:-1, 1:-1].std()) - 1) < 0.05


def test_the_mapping_sees_directions_only():
    mapping = Mapping(5, 2, 3)
    variables = jax.jit(mapping.init)(jax.random.key(0), LATENTS, LABELS)
    apply = jax.jit(mapping.apply)
    styles = apply(variables, LATENTS, LABELS)
    np.testing.assert_allclose(apply(variables, 7 * LATENTS, LABELS), styles, atol=1e-4)
    assert np.abs(apply(variables, -LATENTS, LABELS) - styles).max() > 1e-2


def test_every_layer_has_noise_of_its_own_from_the_images_key():
    variables = jax.jit(GENERATOR.init)(jax.random.key(0), LATENTS, LABELS)
    noisy = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf + 0.1 * (path[-1].key == "noise_strength"), variables
    )
    draw = jax.jit(GENERATOR.apply)
    images = draw(noisy, LATENTS, LABELS, NOISE_KEYS)
    silent = draw(variables, LATENTS, LABELS, NOISE_KEYS)  # a fresh network's layers have strength 0
    assert np.abs(images - silent).max() > 1e-2
    other = draw(noisy, LATENTS, LABELS, NOISE_KEYS.at[0].set(jax.random.key(7)))
    assert np.abs(other[0] - images[0]).max() > 1e-2
    np.testing.assert_allclose(other[1:], images[1:], atol=1e-5)


def test_the_discriminator_sees_the_spread_of_its_group():
    judge = StyleGAN2Discriminator(**SMALL, group=2, mapping_depth=1)
    images = jax.random.normal(jax.random.key(0), (4, 8, 8, 2))
    variables = jax.jit(judge.init)(jax.random.key(1), images, LABELS)
    apply = jax.jit(judge.apply)
    moved = apply(variables, images.at[0].add(1.0), LABELS) - apply(variables, images, LABELS)
    assert abs(moved[2]) > 1e-6 and abs(moved[1]) < 1e-6  # of its group is the image two further


def test_noise_is_one_picture_for_all_channels():
    layer = modulated.ModulatedConv(3)
    x, style = jnp.zeros((1, 4, 4, 2)), jnp.ones((1, 5))
    params = jax.jit(layer.init)(jax.random.key(0), x, style)["params"]
    out = jax.jit(layer.apply)({"params": {**params, "noise_strength": jnp.ones(())}}, x, style, NOISE_KEYS[:1])
    noise = jax.random.normal(NOISE_KEYS[0], (4, 4))
    np.testing.assert_allclose(out[0], equalized.leaky_relu(noise)[..., None].repeat(3, -1), atol=1e-6)


@pytest.mark.parametrize(
    ("network", "size", "message"),
    [
        (StyleGAN2Generator(), 12, "images of 12 pixels: the side must be a power of two from 8 up"),
        (StyleGAN2Generator(style_dim=0), 16, "style_dim=0"),
        (StyleGAN2Discriminator(group=0), 16, "group=0"),
        (StyleGAN2Discriminator(), 4, "images of 4 pixels"),
    ],
)
def test_impossible_settings_are_refused(network, size, message):
    with pytest.raises(ValueError, match=message):
        network.validate(size, 3)

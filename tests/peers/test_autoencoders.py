"""Random small autoencoders of diffusers: encoded, decoded and saved back."""

import jax
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, VQModel

from diffusion_jax import hub
from tests.peers.cases import agree
from tests.peers.networks import TOLERANCE, apply, assert_same_file, channels_last, draw, filled, pick


def convolutional(rng):
    levels = int(rng.integers(1, 4))
    return {
        "in_channels": 3,
        "out_channels": pick(rng, 1, 3),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": [int(8 * pick(rng, 1, 2)) for _ in range(levels)],
        "layers_per_block": int(rng.integers(1, 3)),
        "latent_channels": pick(rng, 2, 4),
        "norm_num_groups": pick(rng, 2, 4),
        "sample_size": pick(rng, 16, 32),
        "scaling_factor": float(rng.uniform(0.1, 1)),
        "mid_block_add_attention": pick(rng, True, True, False),
        "force_upcast": pick(rng, True, False),
    }


def kl(rng):
    config = convolutional(rng) | {
        "use_quant_conv": pick(rng, True, False),
        "use_post_quant_conv": pick(rng, True, False),
        "shift_factor": pick(rng, None, 0.1),
    }
    if rng.random() < 0.5:
        channels = config["latent_channels"]
        config |= {
            "latents_mean": rng.normal(size=channels).tolist(),
            "latents_std": rng.uniform(1, 2, channels).tolist(),
        }
    return AutoencoderKL(**config)


def vq(rng):
    config = convolutional(rng) | {"num_vq_embeddings": pick(rng, 7, 64), "vq_embed_dim": pick(rng, None, 5)}
    return VQModel(**config)


def tiny(rng):
    width, stages = int(8 * pick(rng, 1, 2)), int(rng.integers(1, 4))
    return AutoencoderTiny(
        in_channels=pick(rng, 1, 3),
        out_channels=3,
        encoder_block_out_channels=[width] * stages,
        decoder_block_out_channels=[width] * stages,
        num_encoder_blocks=rng.integers(1, 3, stages).tolist(),
        num_decoder_blocks=rng.integers(1, 3, stages).tolist(),
        latent_channels=pick(rng, 4, 16),
        act_fn=pick(rng, "relu", "relu", "relu", "gelu"),
        latent_magnitude=pick(rng, 3, 2),
        scaling_factor=pick(rng, 1.0, 0.5),
        shift_factor=pick(rng, 0.0, 0.1),
    )


def ends(model, image):
    """What it encodes to, and the images of that."""
    with torch.no_grad():
        encoded = model.encode(image)
        if isinstance(model, AutoencoderKL):
            latents = (encoded.latent_dist.mean, encoded.latent_dist.logvar)
        else:
            latents = (encoded.latents,)
        return [*latents, model.decode(latents[0]).sample]


CASES = [(kl, 9), (vq, 6), (tiny, 6)]


@pytest.mark.parametrize(("make", "seed"), [(make, seed) for make, count in CASES for seed in range(count)])
def test_autoencoder(make, seed, record_property, tmp_path):
    peer = filled(draw(seed, make), seed)
    rng = np.random.default_rng(seed)
    sides = pick(rng, (16, 16), (8, 24))
    image = torch.from_numpy(rng.uniform(-1, 1, (2, peer.config.in_channels, *sides)).astype(np.float32))
    theirs = [channels_last(x) for x in ends(peer, image)]
    peer.save_pretrained(tmp_path / "there")

    def ours():
        try:
            model, params = hub.load(tmp_path / "there")
        except ValueError as error:
            raise ValueError(str(error).replace(f"{tmp_path / 'there'}", "")) from None

        def both(params, image):
            encoded = model.apply({"params": params}, image, method="encode")
            latents = encoded if isinstance(encoded, tuple) else (encoded,)
            return [*latents, model.apply({"params": params}, latents[0], method="decode")]

        outputs = jax.tree.leaves(apply(both, params, channels_last(image)))
        hub.save(model, params, tmp_path / "back")
        return np.concatenate([np.ravel(x) for x in outputs])

    kind = type(peer).__name__
    agree(record_property, kind, ours, np.concatenate([x.ravel() for x in theirs]), TOLERANCE)
    if (tmp_path / "back").exists():
        assert_same_file(peer, tmp_path / "back")
        again = ends(type(peer).from_pretrained(tmp_path / "back").eval(), image)
        for there, here in zip(theirs, again, strict=True):
            np.testing.assert_allclose(channels_last(here), there, rtol=0, atol=1e-6 * np.abs(there).max())

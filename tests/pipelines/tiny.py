"""A pipeline that compiles in seconds: real networks of a few channels, words for tokens, an exact autoencoder."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from diffusion_jax.hub.schedule import Schedule
from diffusion_jax.models.conditional_unet import ConditionalUNet
from diffusion_jax.models.controlnet import ControlNet
from diffusion_jax.models.text import CLIPText, emphasis
from diffusion_jax.models.text.tokenizer import Tokens
from diffusion_jax.pipelines.denoiser import Control
from diffusion_jax.pipelines.latent import LatentDiffusion
from diffusion_jax.pipelines.text import TextEncoder, TextOptions

SIZE, FACTOR = 16, 2
WORDS = ["", "cat", "dog", "red", "blue", "a"]
START, END, LENGTH = 18, 19, 8
DDIM = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 1,
}


class WordTokenizer:
    """One number for each word that the tests use."""

    def __call__(self, prompts, *, weighted=True):
        ids, weights = np.full((len(prompts), LENGTH), END, np.int32), np.ones((len(prompts), LENGTH), np.float32)
        ids[:, 0] = START
        for row, prompt in enumerate(prompts):
            pairs = [(word, weight) for text, weight in emphasis.parse(prompt) for word in text.split()]
            for place, (word, weight) in enumerate(pairs, start=1):
                ids[row, place], weights[row, place] = WORDS.index(word), weight
        return Tokens(ids, np.ones_like(ids), weights)

    def places(self, prompt, words):
        return {word: [1 + prompt.split().index(word)] for word in words}


class Folding(nn.Module):
    """An autoencoder without loss: each square of pixels is one pixel with more channels."""

    latent_channels: int = 3 * FACTOR**2
    factor: int = FACTOR
    scaling_factor: float = 0.5
    shift_factor: float | None = 0.1

    def encode(self, sample):
        b, h, w, c = sample.shape
        x = sample.reshape(b, h // FACTOR, FACTOR, w // FACTOR, FACTOR, c).swapaxes(2, 3)
        mean = x.reshape(b, h // FACTOR, w // FACTOR, -1)
        return mean, jnp.full_like(mean, -30.0)

    def decode(self, latents):
        b, h, w, _ = latents.shape
        x = latents.reshape(b, h, w, FACTOR, FACTOR, 3).swapaxes(2, 3)
        return x.reshape(b, h * FACTOR, w * FACTOR, 3)


def filled(model, seed, **inputs):
    """Parameters that are nowhere zero, so that everything the network is told matters."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), **inputs))["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: (rng.standard_normal(leaf.shape) * 0.4 / max(1, leaf.shape[0] if leaf.ndim > 1 else 4) ** 0.5)
        .astype(np.float32) + (leaf.ndim == 1), shapes,
    )  # fmt: skip


TRUNK = {"widths": (8,), "num_res_blocks": 1, "attention": (True,), "transformer_depth": (1,), "num_heads": (2,)}


def pipeline(*, controls: int = 0, painting: bool = False, config=DDIM) -> LatentDiffusion:
    autoencoder = Folding()
    channels = autoencoder.latent_channels
    network = ConditionalUNet(**TRUNK, norm_groups=4, out_channels=channels, sample_size=SIZE // FACTOR)
    text = CLIPText(20, LENGTH, 8, 3, 2, 16, end_token=END)
    side = SIZE // FACTOR
    told = {"timestep": jnp.zeros(()), "encoder_hidden_states": jnp.zeros((1, LENGTH, 8))}
    sample = jnp.zeros((1, side, side, 2 * channels + 1 if painting else channels))
    trunk = filled(network, 0, sample=sample, **told)
    trunk["conv_out"] = jax.tree.map(lambda leaf: 0.2 * leaf, trunk["conv_out"])  # so that images stay in range
    params = {
        "network": trunk,
        "autoencoder": {},
        "text_encoder": filled(text, 1, input_ids=jnp.zeros((1, LENGTH), jnp.int32)),
    }
    nets = []
    for i in range(controls):
        control = ControlNet(**TRUNK, norm_groups=4, hint_widths=(4, 4), sample_size=None)
        given = {"sample": sample, "controlnet_cond": jnp.zeros((1, SIZE, SIZE, 3)), **told}
        params[f"control_{i}"] = filled(control, 2 + i, **given)
        nets.append(Control(f"control_{i}", control))
    return LatentDiffusion(
        network=network,
        autoencoder=autoencoder,
        encoders=(TextEncoder("text_encoder", text, WordTokenizer()),),
        schedule=Schedule(config),
        params=params,
        options=TextOptions("sd", 0),
        sample_size=(side, side),
        controls=tuple(nets),
    )


def replace(pipe, **changes):
    return dataclasses.replace(pipe, **changes)

"""From images in [-1, 1] to the levels 0 to 255 that a feature extractor is shown, as the papers' code rounds them."""

import jax
import jax.numpy as jnp

# rule -> where it is published
RULES = {
    "half_up": "floor(127.5 x + 128): EDM, DiT, SiT, torchcfm, and DDIM's files",
    "floor": "floor(127.5 (x + 1)), truncation: improved DDPM, ADM, EDM2, score_sde and rectified flow",
    "none": "127.5 (x + 1), no rounding: DDPM; Inception only",
}


def quantised(images: jax.Array, rule: str) -> jax.Array:
    """Levels of images float [..., C], what lies outside of [-1, 1] clipped: uint8, or float32 for the rule "none".

    Equal to `diffusion_jax.data.to_uint8` where that has the rule. Raises ValueError for one that is not in `RULES`.
    """
    if rule not in RULES:
        raise ValueError(f"quantisation {rule!r} is unknown; it can be {', '.join(RULES)}")
    x = images.astype(jnp.float32)
    levels = x * 127.5 + 128 if rule == "half_up" else (x + 1) * 127.5
    levels = jnp.clip(levels, 0, 255)
    return levels if rule == "none" else jnp.floor(levels).astype(jnp.uint8)

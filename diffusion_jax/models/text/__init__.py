"""Networks that turn token numbers into features of a text."""

from diffusion_jax.models.text.bert import BertEncoder
from diffusion_jax.models.text.clip import CLIPText
from diffusion_jax.models.text.features import TextFeatures
from diffusion_jax.models.text.t5 import T5Encoder

__all__ = ["BertEncoder", "CLIPText", "T5Encoder", "TextFeatures"]

"""transformers' text encoders: CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel and BertModel."""

import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from diffusion_jax.hub import diffusers
from diffusion_jax.hub.format import Config, Format
from diffusion_jax.hub.tensors import Path, Shapes, Tensor, leaf_name, parameter
from diffusion_jax.models.text import BertEncoder, CLIPText, T5Encoder

STEM = "model"
PROJECTED = "CLIPTextModelWithProjection"
# What `complete` adds to a config: what the tensors say that it does not.
HAS_PROJECTION, HAS_POOLER, PREFIXED = "_has_projection", "_has_pooler", "_prefixed"

# The classes' own defaults, for files that do not state every setting.
CLIP_DEFAULTS: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "projection_dim": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 1,
}
CLIP_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "width",
    "intermediate_size": "mlp_width",
    "num_hidden_layers": "depth",
    "num_attention_heads": "num_heads",
    "max_position_embeddings": "max_length",
    "hidden_act": "activation",
    "layer_norm_eps": "norm_eps",
    "eos_token_id": "end_token",
}
T5_DEFAULTS: dict[str, Any] = {
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_heads": 8,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "relu",
    "is_encoder_decoder": False,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
T5_FIELDS = {
    "vocab_size": "vocab_size",
    "d_model": "width",
    "d_kv": "head_width",
    "d_ff": "mlp_width",
    "num_layers": "depth",
    "num_heads": "num_heads",
    "relative_attention_num_buckets": "num_buckets",
    "relative_attention_max_distance": "max_distance",
    "layer_norm_epsilon": "norm_eps",
    "feed_forward_proj": "feed_forward",
}
BERT_DEFAULTS: dict[str, Any] = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}
BERT_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "width",
    "num_hidden_layers": "depth",
    "num_attention_heads": "num_heads",
    "intermediate_size": "mlp_width",
    "max_position_embeddings": "max_length",
    "type_vocab_size": "num_types",
    "layer_norm_eps": "norm_eps",
}
# Path of a layer's module here -> its name there.
CLIP_LAYER = {"mlp_fc1": "mlp.fc1", "mlp_fc2": "mlp.fc2"}
CLIP_EMBEDDINGS = ("token_embedding", "position_embedding")
T5_LAYER = {
    "attention_norm": "layer.0.layer_norm",
    **{name: f"layer.0.SelfAttention.{name}" for name in "qkvo"},
    "mlp_norm": "layer.1.layer_norm",
    **{name: f"layer.1.DenseReluDense.{name}" for name in ("wi", "wi_0", "wi_1", "wo")},
}
BERT_LAYER = {
    **{name: f"attention.self.{name}" for name in ("query", "key", "value")},
    "attention_output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
    "output_norm": "output.LayerNorm",
}
BERT_MODULES = {"embeddings_norm": "embeddings.LayerNorm", "pooler": "pooler.dense"}


def _fields(c: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {here: c[there] for there, here in names.items()}


def _settings(model: Any, names: Mapping[str, str]) -> dict[str, Any]:
    return {there: getattr(model, here) for there, here in names.items()}


def _inputs(model: Any, config: Config) -> dict[str, Any]:
    return {"input_ids": jnp.zeros((1, 2), jnp.int32)}


def _is(kind: str, *classes: str) -> Any:
    """Whether a config is of that model_type, or names one of the classes."""

    def matches(config: Config) -> bool:
        named = config.get("architectures") or []
        return any(name in classes for name in named) or (not named and config.get("model_type") == kind)

    return matches


# --- CLIP. ------------------------------------------------------------------------------------------------------


def complete_clip(config: Config, tensors: Mapping[str, np.ndarray]) -> Config:
    prefixed = any(name.startswith("text_model.") for name in tensors)
    return {**config, HAS_PROJECTION: "text_projection.weight" in tensors, PREFIXED: prefixed}


def build_clip(config: Config, dtype: DTypeLike) -> CLIPText:
    c = CLIP_DEFAULTS | dict(config)
    projected = c.get(HAS_PROJECTION, PROJECTED in (c.get("architectures") or []))
    projection = c["projection_dim"] if projected else None
    return CLIPText(projection=projection, dtype=dtype, **_fields(c, CLIP_FIELDS))


def describe_clip(model: CLIPText, shapes: Shapes) -> dict[str, Any]:
    return CLIP_DEFAULTS | {
        "architectures": ["CLIPTextModel" if model.projection is None else PROJECTED],
        "model_type": "clip_text_model",
        "projection_dim": model.projection or CLIP_DEFAULTS["projection_dim"],
        **_settings(model, CLIP_FIELDS),
    }


def tensors_clip(model: CLIPText, shapes: Shapes, config: Config) -> list[Tensor]:
    # transformers 5 stores the network without a projection without the prefix that older files have
    prefix = "text_model." if config.get(PREFIXED, model.projection is not None) else ""

    def name(path: Path) -> str:
        module, inner = path[0], path[1:-1]
        if module == "text_projection":
            return module
        if module in CLIP_EMBEDDINGS:
            return f"{prefix}embeddings.{module}"
        if module == "final_layer_norm":
            return prefix + module
        place = [CLIP_LAYER.get(part, part) for part in inner]
        return ".".join([f"{prefix}encoder.layers", module.removeprefix("layers_"), *place])

    return [parameter(f"{name(path)}.{leaf_name(path)}", path, shape) for path, shape in shapes.items()]


# --- T5. --------------------------------------------------------------------------------------------------------


def build_t5(config: Config, dtype: DTypeLike) -> T5Encoder:
    c = T5_DEFAULTS | dict(config)
    diffusers.check_covered("T5EncoderModel", c, {"feed_forward_proj": ("gated-gelu", "relu")})
    return T5Encoder(dtype=dtype, **_fields(c, T5_FIELDS))


def describe_t5(model: T5Encoder, shapes: Shapes) -> dict[str, Any]:
    gated = model.feed_forward == "gated-gelu"
    return T5_DEFAULTS | {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "is_gated_act": gated,
        "dense_act_fn": "gelu_new" if gated else "relu",
        **_settings(model, T5_FIELDS),
    }


def tensors_t5(model: T5Encoder, shapes: Shapes, config: Config) -> list[Tensor]:
    def name(path: Path) -> str:
        module, inner = path[0], path[1:-1]
        if module == "shared":
            return module
        if module == "relative_attention_bias":
            return f"encoder.block.0.layer.0.SelfAttention.{module}"
        if module == "final_layer_norm":
            return f"encoder.{module}"
        return f"encoder.{module.replace('_', '.')}.{T5_LAYER[inner[0]]}"

    return [parameter(f"{name(path)}.{leaf_name(path)}", path, shape) for path, shape in shapes.items()]


# --- BERT. ------------------------------------------------------------------------------------------------------


def complete_bert(config: Config, tensors: Mapping[str, np.ndarray]) -> Config:
    return {**config, HAS_POOLER: "pooler.dense.weight" in tensors}


def build_bert(config: Config, dtype: DTypeLike) -> BertEncoder:
    c = BERT_DEFAULTS | dict(config)
    covered = {"hidden_act": ("gelu",), "position_embedding_type": (None, "absolute")}
    diffusers.check_covered("BertModel", {"position_embedding_type": None} | c, covered)
    return BertEncoder(pooler=c.get(HAS_POOLER, True), dtype=dtype, **_fields(c, BERT_FIELDS))


def describe_bert(model: BertEncoder, shapes: Shapes) -> dict[str, Any]:
    return BERT_DEFAULTS | {
        "architectures": ["BertModel"],
        "model_type": "bert",
        **_settings(model, BERT_FIELDS),
    }


def tensors_bert(model: BertEncoder, shapes: Shapes, config: Config) -> list[Tensor]:
    def name(path: Path) -> str:
        module = path[0]
        if module.startswith("layer_"):
            return f"encoder.{module.replace('_', '.')}.{BERT_LAYER[path[1]]}"
        return BERT_MODULES.get(module, f"embeddings.{module}")

    return [parameter(f"{name(path)}.{leaf_name(path)}", path, shape) for path, shape in shapes.items()]


def rename_bert(name: str) -> str:
    return re.sub(r"LayerNorm\.(gamma|beta)$", _norm_name, name.removeprefix("bert."))


def _norm_name(match: re.Match[str]) -> str:
    return "LayerNorm.weight" if match[1] == "gamma" else "LayerNorm.bias"


def rename_t5(name: str) -> str:
    """The embedding of tokens has two names, one for T5's encoder and one for encoder and decoder together."""
    return "shared.weight" if name == "encoder.embed_tokens.weight" else name


def _is_position_table(name: str) -> bool:
    """Positions 0, 1, 2, ..., which older files store."""
    return name.endswith("embeddings.position_ids")


CLIP_FORMAT = Format(
    name="transformers",
    covers="CLIPTextModel and CLIPTextModelWithProjection (transformers)",
    model_class=CLIPText,
    stem=STEM,
    matches=_is("clip_text_model", "CLIPTextModel", PROJECTED),
    build=build_clip,
    describe=describe_clip,
    inputs=_inputs,
    tensors=tensors_clip,
    ignores=_is_position_table,
    complete=complete_clip,
    defaults=CLIP_DEFAULTS,
)
T5_FORMAT = Format(
    name="transformers",
    covers="T5EncoderModel (transformers)",
    model_class=T5Encoder,
    stem=STEM,
    matches=_is("t5", "T5EncoderModel"),
    build=build_t5,
    describe=describe_t5,
    inputs=_inputs,
    tensors=tensors_t5,
    rename=rename_t5,
    defaults=T5_DEFAULTS,
)
BERT_FORMAT = Format(
    name="transformers",
    covers="BertModel (transformers)",
    model_class=BertEncoder,
    stem=STEM,
    matches=_is("bert", "BertModel"),
    build=build_bert,
    describe=describe_bert,
    inputs=_inputs,
    tensors=tensors_bert,
    rename=rename_bert,
    ignores=_is_position_table,
    complete=complete_bert,
    defaults=BERT_DEFAULTS,
)

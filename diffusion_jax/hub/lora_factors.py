"""The tensors of one module in a LoRA file, and what they change here: LoRA, DoRA, LoHa and LoKr.

Names and shapes are those of peft, diffusers, kohya's scripts and LyCORIS. Matrices are [out, r] @ [r, in] there;
with a core [r, r, k, k] (Tucker) both are stored with the rank first.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from diffusion_jax.hub.files import CheckpointError
from diffusion_jax.pipelines.adapters import Decomposed, Factors, Hadamard, Kronecker, LowRank

# Ends of names: what each is called here. The older spellings of diffusers are among them.
ENDS = {
    "down": r"(?:lora_A|lora_linear_layer\.down|lora\.down|lora_down)(?:\.default)?\.weight",
    "up": r"(?:lora_B|lora_linear_layer\.up|lora\.up|lora_up)(?:\.default)?\.weight",
    "mid": r"lora_mid\.weight",
    "alpha": r"(?:lora_)?alpha",
    "magnitude": r"lora_magnitude_vector(?:\.default)?(?:\.weight)?",
    "dora_scale": r"dora_scale",
    **{name: rf"{name}(?:\.default)?" for name in (
        "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2",
        "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2",
    )},
}  # fmt: skip
PARTS = re.compile("^(.*?)[._](?:" + "|".join(f"(?P<{name}>{end})" for name, end in ENDS.items()) + ")$")
# What else people call a LoRA, by patterns of its names.
STRANGERS = {
    "boft_": "BOFT",
    "oft_": "OFT",
    "ia3_|on_input$": "IA3",
    "vera_": "VeRA",
    "glora": "GLoRA",
    "lora_embedding_": "LoRA of embeddings",
    r"lora_[AB](?:\.default)?\.bias$": "LoRA with biases",
    "[._]w_norm$|[._]b_norm$": "norms of LyCORIS",
    r"[._]diff(?:_b)?$": "full differences of weights",
    "ip_adapter|image_proj": "an IP adapter",
}


def stranger(key: str) -> str | None:
    """The kind of a change that is not covered, if the name of a tensor tells."""
    return next((kind for mark, kind in STRANGERS.items() if re.search(mark, key)), None)


@dataclasses.dataclass(frozen=True)
class Stated:
    """What a file's settings say of one module: alpha and rank, and whether alpha is divided by the rank's root."""

    alpha: float | None = None
    rank: int | None = None
    root: bool = False


class Module:
    """The tensors of one module by the keys of ENDS, as float32."""

    def __init__(self, name: str, file: object):
        self._name, self._file = name, file
        self._parts: dict[str, np.ndarray] = {}

    def add(self, part: str, key: str, value: np.ndarray) -> None:
        """Takes a tensor. Raises CheckpointError if it is not finite or cannot be a factor."""
        value = np.asarray(value, np.float32)
        if not np.isfinite(value).all():
            raise CheckpointError(f"{self._file}: {key} holds values that are not finite")
        wanted = {"alpha": (0, 1, 2), "magnitude": (1, 2, 4), "dora_scale": (1, 2, 4), "mid": (4,)}.get(part, (2, 4))
        if value.ndim not in wanted or not value.size:
            raise CheckpointError(
                f"{self._file}: {key} is {list(value.shape)}; it must have {' or '.join(map(str, wanted))} axes"
            )
        self._parts[part] = value

    @property
    def complete(self) -> bool:
        """Whether nothing is missing for some kind of change."""
        have = self._parts.keys()
        return (
            have >= {"down", "up"}
            or have >= {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}
            or all(f"lokr_w{i}" in have or have >= {f"lokr_w{i}_a", f"lokr_w{i}_b"} for i in (1, 2))
        )

    def factors(self, shape: tuple[int, ...], stated: Stated) -> Factors:
        """The change of a kernel of this shape [k, k, in, out] or [in, out], with its scale.

        Raises:
          CheckpointError: it is a change of another shape.
        """
        try:
            change, rank = self._change(shape)
        except _Mismatch as error:
            raise CheckpointError(f"{self._file}: {self._name} {error}") from None
        alpha = float(self._parts["alpha"].reshape(-1)[0]) if "alpha" in self._parts else stated.alpha
        if rank is None:  # LoKr with nothing factored: only settings know a rank, LyCORIS' own files mean a scale of 1
            rank, alpha = (1, 1.0) if "alpha" in self._parts or stated.rank is None else (stated.rank, alpha)
        root = stated.root and "alpha" not in self._parts
        scaled = _scaled(change, 1.0 if alpha is None else alpha / (np.sqrt(rank) if root else rank))
        return scaled if (magnitude := self._magnitude(shape)) is None else Decomposed(scaled, magnitude)

    def _change(self, shape: tuple[int, ...]) -> tuple[LowRank | Hadamard | Kronecker, int | None]:
        p = self._parts
        if "down" in p:
            down, up = p["down"], p["up"].reshape(len(p["up"]), -1)
            if "mid" in p:  # down to the rank, a convolution there, and up
                flat = down.reshape(len(down), -1)
                if p["mid"].shape[1] != len(flat):
                    raise _Mismatch(f"has a core of {list(p['mid'].shape)} behind a factor of {list(down.shape)}")
                down = np.einsum("orhw,ri->oihw", p["mid"], flat)
            return _low_rank(down, up, shape), len(down)
        if "hada_w1_a" in p:
            pair = (_product(p, "hada_w1", "hada_t1", shape), _product(p, "hada_w2", "hada_t2", shape))
            return Hadamard(*pair), len(p["hada_w1_b"])
        return self._kronecker(shape)

    def _kronecker(self, shape: tuple[int, ...]) -> tuple[Kronecker, int | None]:
        p = self._parts
        first = p["lokr_w1"] if "lokr_w1" in p else p["lokr_w1_a"] @ p["lokr_w1_b"]
        if first.ndim != 2 or shape[-2] % first.shape[1] or shape[-1] % first.shape[0]:
            raise _Mismatch(f"has a factor of {list(first.shape)} for a weight of shape {list(shape)} here")
        inner = (*shape[:-2], shape[-2] // first.shape[1], shape[-1] // first.shape[0])
        if "lokr_w2" in p:
            second = _kernel(p["lokr_w2"], inner)
        else:
            factors = _product(p, "lokr_w2", "lokr_t2", inner)
            second = factors.down @ factors.up
        rank = next((len(p[name]) for name in ("lokr_w2_b", "lokr_w1_b") if name in p), None)
        return Kronecker(np.ascontiguousarray(first.T), second), rank

    def _magnitude(self, shape: tuple[int, ...]) -> np.ndarray | None:
        part = next((name for name in ("magnitude", "dora_scale") if name in self._parts), None)
        if part is None:
            return None
        value = self._parts[part]
        # LyCORIS may keep the lengths of the inputs' weights instead: [1, in]
        if value.size != shape[-1] or (part == "dora_scale" and len(value) != shape[-1]):
            raise CheckpointError(
                f"{self._file}: {self._name} has magnitudes {list(value.shape)} (DoRA); one for each of the"
                f" {shape[-1]} outputs is covered"
            )
        return value.reshape(-1)


class _Mismatch(Exception):
    """What does not fit, for the message."""


def _low_rank(down: np.ndarray, up: np.ndarray, shape: tuple[int, ...]) -> LowRank:
    """down [r, in, k, k], [r, in k k] or [r, in], and up [out, r]."""
    rank, (*spatial, features, out) = len(down), shape
    if up.shape[1] != rank:
        raise _Mismatch(f"has factors of {list(down.shape)} and {list(up.shape)}, which have no rank in common")
    spaced = down.ndim == 4 and down.shape[1:] not in ((features, *spatial), (features, *spatial, 1, 1))
    if len(up) != out or spaced or down.size != rank * int(np.prod(shape[:-1])):
        got = [*down.shape[2:], down.shape[1], len(up)]
        raise _Mismatch(
            f"changes a weight of shape {[n for n in got if n > 1 or len(got) == 2]}; it is {list(shape)} here"
        )
    inner = down.reshape(rank, features, *spatial)
    order = (*range(2, inner.ndim), 1, 0)
    return LowRank(np.ascontiguousarray(inner.transpose(order)), np.ascontiguousarray(up.T))


def _product(p: Mapping[str, np.ndarray], name: str, core: str, shape: tuple[int, ...]) -> LowRank:
    """name_a @ name_b, through the core if there is one."""
    a, b = p[f"{name}_a"], p[f"{name}_b"]
    if core not in p:
        if a.shape[1] != len(b):
            raise _Mismatch(f"has factors of {list(a.shape)} and {list(b.shape)}")
        return _low_rank(b, a.reshape(len(a), -1), shape)
    if p[core].ndim != 4 or p[core].shape[:2] != (len(a), len(b)):
        raise _Mismatch(f"has a core of {list(p[core].shape)} between factors of {list(a.shape)} and {list(b.shape)}")
    return _low_rank(np.einsum("ijkl,jr->irkl", p[core], b), a.T, shape)


def _kernel(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A full factor [out, in, k, k] in our order."""
    *spatial, features, out = shape
    if value.shape[:2] != (out, features) or value.size != int(np.prod(shape)):
        raise _Mismatch(f"has a factor of {list(value.shape)} where [{out}, {features}] outputs and inputs are left")
    inner = value.reshape(out, features, *spatial)
    return np.ascontiguousarray(inner.transpose((*range(2, inner.ndim), 1, 0)))


def _scaled(change: LowRank | Hadamard | Kronecker, scale: float) -> LowRank | Hadamard | Kronecker:
    if isinstance(change, LowRank):
        return change._replace(up=change.up * np.float32(scale))
    if isinstance(change, Hadamard):
        return change._replace(first=change.first._replace(up=change.first.up * np.float32(scale)))
    return change._replace(first=change.first * np.float32(scale))

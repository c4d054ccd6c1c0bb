"""Networks of diffusers with random weights beside ours: the same outputs, and the same file back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch

from diffusion_jax import hub
from tests.peers.cases import agree

TOLERANCE = 1e-4
# The programs run once: XLA's optimisations would cost more than they save.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def draw(seed: int, make: Callable[[np.random.Generator], Any], attempts: int = 50) -> Any:
    """What `make` gives for the first of the seed's draws that the peer accepts."""
    rng = np.random.default_rng(seed)
    for _ in range(attempts):
        try:
            return make(rng)
        except (ValueError, RuntimeError, TypeError, AssertionError, AttributeError, NotImplementedError):
            continue
    raise AssertionError(f"no valid case in {attempts} draws")


def filled(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """The network with random weights, none of which is zero, as it would be evaluated."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if value.ndim > 1:
                value.copy_(noise / value[0].numel() ** 0.5)
            else:
                value.copy_(0.1 * noise + (1.0 if name.endswith("weight") else 0.0))
    return model.eval()


def pick(rng: np.random.Generator, *choices: Any) -> Any:
    return choices[rng.integers(len(choices))]


def channels_last(x: torch.Tensor) -> np.ndarray:
    values = x.detach().numpy()
    return values.transpose(0, 2, 3, 1) if values.ndim == 4 else values


def call(model: torch.nn.Module, given: Mapping[str, Any]) -> np.ndarray:
    """All outputs of the peer, one after the other, images channels last."""
    with torch.no_grad():
        return _joined(model(**given, return_dict=False), channels_last)


def compare(
    record_property: Callable[[str, object], None],
    kind: str,
    peer: torch.nn.Module,
    given: Mapping[str, Any],
    folder: Path,
    **options: Any,
) -> None:
    """Saves the peer, opens it with hub.load and compares the outputs; saves it back and lets the peer open that.

    Args:
      record_property: pytest's.
      kind: of case, for the count.
      peer: the network.
      given: keywords of its forward(), images channels first.
      folder: an empty one.
      options: of our call alone.
    """
    peer.save_pretrained(folder / "there")
    theirs = call(peer, given)

    def ours() -> np.ndarray:
        try:
            model, params = hub.load(folder / "there")
        except ValueError as error:  # counted by its name, without the folder's
            raise ValueError(str(error).replace(f"{folder / 'there'}", "")) from None
        inputs = jax.tree.map(channels_last, dict(given)) | options
        out = apply(lambda p, x: model.apply({"params": p}, **x), params, inputs)
        hub.save(model, params, folder / "back")
        return _joined(out, np.asarray)

    agree(record_property, kind, ours, theirs, TOLERANCE)
    if (folder / "back").exists():
        assert_same_file(peer, folder / "back")
        again = type(peer).from_pretrained(folder / "back", low_cpu_mem_usage=False)
        np.testing.assert_allclose(call(again.eval(), given), theirs, rtol=0, atol=1e-6 * np.abs(theirs).max())


def apply(function: Callable[..., Any], *arguments: Any) -> Any:
    """function(*arguments), compiled quickly."""
    return jax.jit(function).lower(*arguments).compile(QUICK)(*arguments)


def assert_same_file(peer: torch.nn.Module, folder: Path) -> None:
    """diffusers opens the folder with nothing missing or left over, and finds every bit of the peer's."""
    again, report = type(peer).from_pretrained(folder, low_cpu_mem_usage=False, output_loading_info=True)  # pyright: ignore[reportAttributeAccessIssue]
    assert not any(report.values()), report
    there = again.state_dict()
    for name, value in peer.state_dict().items():
        # positions are no weights: ours are the same formula, in float64
        tolerance = 1e-6 if name == "pos_embed.pos_embed" else 0
        np.testing.assert_allclose(there[name].numpy(), value.numpy(), rtol=0, atol=tolerance, err_msg=name)


def _joined(outputs: Any, convert: Callable[[Any], np.ndarray]) -> np.ndarray:
    return np.concatenate([convert(leaf).ravel() for leaf in jax.tree.leaves(outputs)])

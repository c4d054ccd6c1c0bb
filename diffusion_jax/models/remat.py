"""What the backward pass finds kept and what it computes a second time (Chen et al. 2016, arXiv:1604.06174).

The choices of every network's field ``remat``, from most memory to least; inside is what a block computes between its
input, which is always kept, and its output:

    none           everything inside is kept; nothing is computed twice
    dots           the results of matrix products and convolutions; norms, activations and softmax are computed again
    dots_no_batch  those of products with a kernel only: convolutions and attention's products are computed again too
    offload        as dots_no_batch, kept in the host's memory instead of the device's
    full           nothing inside; the whole block runs again

Numbers do not depend on the choice, only memory and time.
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn

from diffusion_jax.models.checks import check_choice

_policies = jax.checkpoint_policies
POLICIES: dict[str, Callable[..., Any] | None] = {
    "none": _policies.everything_saveable,
    "dots": _policies.dots_saveable,
    "dots_no_batch": _policies.dots_with_no_batch_dims_saveable,
    "offload": _policies.offload_dot_with_no_batch_dims("device", "pinned_host"),
    "full": _policies.nothing_saveable,
}
# Before there were names, the field was a bool.
_BOOLS = {False: "none", True: "full"}


def check_remat(remat: str | bool) -> None:
    """Raises ValueError, one line, for a name that is not in POLICIES."""
    if not isinstance(remat, bool):
        check_choice("remat", remat, tuple(POLICIES))


def rematerialized(
    block: type[nn.Module], remat: str | bool, static_argnums: tuple[int, ...] = (), *, scanned: bool = False
) -> type[nn.Module]:
    """The class of a block, made to keep what ``remat`` says of what is inside it.

    Args:
      block: a module class; the names of its parameters stay the same.
      remat: a name of POLICIES; True is "full" and False "none".
      static_argnums: arguments of its call that are no arrays, counted with self as 0.
      scanned: whether it runs inside a loop over layers, where XLA cannot undo the recomputation by finding the same
        expression twice and need not be kept from it.

    Raises:
      ValueError: no such name.
    """
    check_remat(remat)
    name = _BOOLS[remat] if isinstance(remat, bool) else remat
    if name == "none":
        return block
    return nn.remat(block, prevent_cse=not scanned, static_argnums=static_argnums, policy=POLICIES[name])

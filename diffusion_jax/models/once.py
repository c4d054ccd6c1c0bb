"""What is computed once on a CPU, where XLA would compute it again in every kernel that reads it."""

import jax
from jax import lax

from diffusion_jax.models import target


def computed_once(x: jax.Array) -> jax.Array:
    """x, stored before anything reads it, and its gradient too.

    For the sums of a residual stream. XLA on the CPU repeats cheap work rather than store its result: forwards and
    backwards, each block then adds up all the blocks before it, and the work grows with the square of the depth. It was
    a quarter of DiT-B/2's train step. The compilers for GPUs and TPUs weigh this themselves and are left alone.
    """
    return lax.optimization_barrier(x) if target.platform() == "cpu" else x

"""A convolutional network on a large image, tile by tile, so that its memory stays that of one tile.

Tiles overlap, and neighbours are blended over part of the overlap: a tile's first rows (columns) fade in linearly
over the last ones of the tile before. The network sees no further than its tile, so the result is not that of the
whole image. Tile sizes, overlaps and the order of blending are those of diffusers.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Network = Callable[[jax.Array], jax.Array]


def one_by_one(network: Network, x: jax.Array) -> jax.Array:
    """The network on each image of the batch alone, one after the other in one compiled loop."""
    return jax.lax.map(lambda image: network(image[None])[0], x)


def tiled(network: Network, x: jax.Array, *, tile: int, tile_out: int, overlap: float = 0.25) -> jax.Array:
    """The network on overlapping tiles, blended.

    Args:
      network: [B, h, w, C] -> [B, h', w', C'], with h' / h = tile_out / tile for every tile.
      x: [B, H, W, C].
      tile: side of a tile of x; tiles at the bottom and right edges are smaller.
      tile_out: side of what the network makes of it.
      overlap: of neighbouring tiles, as a fraction of a side.

    Returns:
      [B, H tile_out / tile, W tile_out / tile, C'].

    Raises:
      ValueError: a tile too small to overlap, or sizes that the network would not scale to whole numbers.
    """
    stride = int(tile * (1 - overlap))
    extent = int(tile_out * overlap)
    if stride < 1 or stride == tile or stride * tile_out != (tile_out - extent) * tile:
        raise ValueError(f"tile={tile} with overlap={overlap}: tiles must overlap by whole pixels on both sides")
    _, height, width, _ = x.shape
    rows, columns = (range(0, size, stride) for size in (height, width))
    outputs = _outputs(network, {(i, j): x[:, i : i + tile, j : j + tile] for i in rows for j in columns})

    blended: list[jax.Array] = []
    above: list[jax.Array] = []
    for i in rows:
        row: list[jax.Array] = []
        for j in columns:
            output = outputs[i, j]
            if i > 0:
                output = _fade_in(above[len(row)], output, extent, axis=1)
            if j > 0:
                output = _fade_in(row[-1], output, extent, axis=2)
            row.append(output)
        kept = tile_out - extent
        blended.append(jnp.concatenate([output[:, :kept, :kept] for output in row], axis=2))
        above = row
    return jnp.concatenate(blended, axis=1)


def _outputs(network: Network, tiles: dict[tuple[int, int], jax.Array]) -> dict[tuple[int, int], jax.Array]:
    """The network's output for every tile; tiles of one shape share one compiled loop."""
    shapes: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for place, x in tiles.items():
        shapes.setdefault(x.shape, []).append(place)
    outputs: dict[tuple[int, int], jax.Array] = {}
    for places in shapes.values():
        stacked = jax.lax.map(network, jnp.stack([tiles[place] for place in places]))
        outputs |= {place: stacked[i] for i, place in enumerate(places)}
    return outputs


def _fade_in(before: jax.Array, x: jax.Array, extent: int, axis: int) -> jax.Array:
    """x with its first entries along the axis blended into the last ones of the tile before."""
    extent = min(extent, before.shape[axis], x.shape[axis])
    shape = [1] * x.ndim
    shape[axis] = extent
    weight = (jnp.arange(extent, dtype=x.dtype) / extent).reshape(shape)
    end = jax.lax.slice_in_dim(before, before.shape[axis] - extent, None, axis=axis)
    start = jax.lax.slice_in_dim(x, 0, extent, axis=axis)
    rest = jax.lax.slice_in_dim(x, extent, None, axis=axis)
    return jnp.concatenate([end * (1 - weight) + start * weight, rest], axis=axis)

"""The command that turns images into latents, once, for configs whose data are latents.

./launch/local.sh encode --vae VAE --out DIR --data image_folder --path IMAGES --image_size 256
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusion_jax import platform

platform.prepare()  # before anything imports JAX

import jax  # noqa: E402
import numpy as np  # noqa: E402
import tqdm  # noqa: E402

from diffusion_jax import batching, data, hub  # noqa: E402
from diffusion_jax.data.source import LABEL  # noqa: E402
from diffusion_jax.data.sources import latents as stored  # noqa: E402
from diffusion_jax.hub.files import check_writable  # noqa: E402
from diffusion_jax.jobs.work_directory import write_json  # noqa: E402
from diffusion_jax.methods import latent_space  # noqa: E402
from diffusion_jax.models.autoencoder import AutoencoderKL  # noqa: E402

BAD_INPUT = 2
SHARD_ROWS = 4096


def encode(
    source: data.Source,
    folder: Path,
    autoencoder: Any,
    params: Any,
    *,
    batch_size: int = 16,
    flip: bool = False,
    unit_range: bool = False,
    shard_rows: int = SHARD_ROWS,
) -> tuple[np.ndarray, np.ndarray, int]:
    """Writes the means and standard deviations of a split's latents, and its labels if there are classes, to a folder.

    Args:
      source: images of 3 channels, or of 1, which is repeated.
      folder: gets latents-*.npy, float32 [n, H, W, 2 C] in the order of the source, and labels.npy.
      autoencoder, params: from `hub.load`.
      flip: every image is followed by its mirror image.
      unit_range: the autoencoder is given images in [0, 1], as EDM2's was.
      batch_size, shard_rows: images that are encoded at once, and rows of a file.

    Returns:
      (mean, standard deviation) of each channel of latents drawn from the Gaussians, float64 [C], and the rows written.

    Raises:
      ValueError: an image that cannot be read, or of a size that the autoencoder cannot halve.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run = jax.jit(functools.partial(latent_space.encode, autoencoder, unit_range=unit_range))
    rows, labels, done, shard = [], [], 0, 0
    total = squares = np.zeros(())
    with tqdm.tqdm(total=len(source), desc=folder.name, unit="image", disable=not sys.stderr.isatty()) as bar:
        for start in range(0, len(source), batch_size):
            examples = [source[i] for i in range(start, min(start + batch_size, len(source)))]
            images = data.to_float(np.stack([example["image"] for example in examples]))
            images = np.repeat(images, 3, -1) if images.shape[-1] == 1 else images
            versions = [images, images[:, :, ::-1]] if flip else [images]
            encoded = np.stack([batching.mapped(functools.partial(run, params), v, batch_size) for v in versions], 1)
            encoded = encoded.reshape(-1, *encoded.shape[2:])
            mean, deviation = np.split(encoded.astype(np.float64), 2, axis=-1)
            total = total + mean.mean((1, 2)).sum(0)
            squares = squares + (mean**2 + deviation**2).mean((1, 2)).sum(0)
            rows.extend(encoded)
            labels.extend(np.repeat([example["condition"].get(LABEL, 0) for example in examples], len(versions)))
            done += len(encoded)
            while len(rows) >= shard_rows or (rows and start + batch_size >= len(source)):
                np.save(folder / f"latents-{shard:05}.npy", np.stack(rows[:shard_rows]))
                rows, shard = rows[shard_rows:], shard + 1
            bar.update(len(images))
    if source.num_classes is not None:
        np.save(folder / stored.LABELS, np.array(labels, np.int32))
    mean = total / done
    return mean, np.sqrt(squares / done - mean**2), done


def encode_splits(
    out: Path, vae: str, options: dict[str, Any], *, batch_size: int, flip: bool, unit_range: bool = False
) -> None:
    """Both splits of `data.load_source(**options)` to `out`, and latents.json, by which a source knows the folder."""
    check_writable(out)
    if (out / stored.RECORD).exists():
        raise ValueError(f"--out {out}: there are latents already; name another folder")
    autoencoder, params = hub.load(vae)
    if not isinstance(autoencoder, AutoencoderKL):
        raise ValueError(
            f"--vae {vae}: holds {type(autoencoder).__name__}, which is no autoencoder of Gaussian latents"
        )
    sources = {split: data.load_source(split=split, **options) for split in ("train", "test")}
    run = functools.partial(
        encode, autoencoder=autoencoder, params=params, batch_size=batch_size, unit_range=unit_range
    )
    mean, std, rows = run(sources["train"], out / "train", flip=flip)
    run(sources["test"], out / "test")
    train = sources["train"]
    record = {
        "vae": vae,
        "data": {name: value for name, value in options.items() if value is not None},
        "flip": flip,
        "unit_range": unit_range,
        "num_training_rows": rows,
        "num_classes": train.num_classes,
        "class_names": train.class_names,
        "mean": mean.tolist(),
        "std": std.tolist(),
    }
    write_json(out / stored.RECORD, record)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns the exit code: 0, or 2 with one line for bad input."""
    parser = argparse.ArgumentParser(prog="./launch/local.sh encode", description="Images to latents.")
    parser.add_argument("--vae", required=True, help="folder of the autoencoder: config.json and safetensors")
    parser.add_argument("--out", required=True, type=Path, help="folder for the latents, made if missing")
    parser.add_argument("--data", default="image_folder", help="source of the images, as config.data.name")
    parser.add_argument("--path", help="folder of the images, as config.data.path")
    parser.add_argument("--data_dir", help="where TFDS keeps datasets, as config.data.data_dir")
    parser.add_argument("--image_size", type=int, default=256, help="side of the images in pixels")
    parser.add_argument("--batch_size", type=int, default=16, help="images that are encoded at once")
    parser.add_argument("--flip", action="store_true", help="also encode every training image mirrored")
    parser.add_argument("--unit_range", action="store_true", help="as EDM2: the autoencoder's images are in [0, 1]")
    parsed = parser.parse_args(arguments)
    options = {
        "name": parsed.data,
        "image_size": parsed.image_size,
        "path": parsed.path,
        "data_dir": parsed.data_dir,
    }
    try:
        how = {"batch_size": parsed.batch_size, "flip": parsed.flip, "unit_range": parsed.unit_range}
        encode_splits(parsed.out, parsed.vae, options, **how)
    except (ValueError, OSError) as error:
        print(f"diffusion_jax: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    return 0


if __name__ == "__main__":
    sys.exit(main())

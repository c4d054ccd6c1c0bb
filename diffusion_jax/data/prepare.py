"""Downloads a dataset of TensorFlow Datasets and writes it in the format that can be read at random.

./launch/local.sh prepare cifar10 [--data_dir DIR]

TFDS encodes images with TensorFlow, so this needs the extra `prepare`, which the launcher installs; what reads the
dataset afterwards does not. TFDS's own command would also need Apache Beam, whatever the dataset.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from diffusion_jax.readers import one_line

FORMAT = "array_record"
BAD_INPUT = 2


def prepare(name: str, data_dir: str | None = None) -> Path:
    """Prepares all splits of a dataset, where they are not yet, and returns their folder.

    Args:
        name: the dataset as TFDS writes it: "cifar10", "name/config", "name/config:version".
        data_dir: the folder for prepared datasets; None for TFDS's default (~/tensorflow_datasets or TFDS_DATA_DIR).

    Raises:
        ValueError: there is no such dataset, it is there in another format, its files cannot be downloaded or written,
            they have to be brought by hand (the message says where to), or a package is missing.
    """
    import tensorflow_datasets as tfds

    from diffusion_jax.data.sources import tfds as source

    builder = source.open_builder(name, data_dir, file_format=FORMAT)
    try:
        builder.download_and_prepare()
    except ImportError as error:
        raise ValueError(
            f"preparing {name!r} needs the package {error.name}: install it beside the others, with "
            f"`.venv/bin/python -m pip install {error.name}`"
        ) from None
    except AssertionError as error:  # the archives that a licence keeps from being downloaded
        raise ValueError(" ".join(str(error).split())) from None
    except (OSError, tfds.download.DownloadError) as error:
        raise ValueError(f"{name!r} could not be prepared: {one_line(error)}") from None
    return Path(builder.data_dir)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns the exit code: 0, or 2 with one line for bad input."""
    parser = argparse.ArgumentParser(
        prog="./launch/local.sh prepare",
        description="Downloads a dataset of TensorFlow Datasets, for --config.data.name=tfds:NAME.",
    )
    parser.add_argument("name", metavar="NAME", help="cifar10, or name/config:version as TFDS writes it")
    parser.add_argument("--data_dir", help="where to; TFDS's own default (~/tensorflow_datasets) if not given")
    parsed = parser.parse_args(arguments)
    try:
        folder = prepare(parsed.name, parsed.data_dir)
    except ValueError as error:
        print(f"diffusion_jax: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    where = f" --config.data.data_dir={parsed.data_dir}" if parsed.data_dir else ""
    print(f"prepared in {folder}; use it with --config.data.name=tfds:{parsed.name}{where}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

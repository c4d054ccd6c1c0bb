"""Any TFDS dataset of images by name, read at random from array_record files without TensorFlow."""

from __future__ import annotations

import difflib
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from diffusion_jax.data.decode import read_image
from diffusion_jax.data.source import LABEL

# TFDS test splits often come without labels (imagenet2012 has -1 there), validation splits with them.
TEST_SPLITS = ("validation", "test")
TEST_PERCENT = 10


class TfdsImages:
    """Images of one TFDS split; see `load`."""

    dtype = np.dtype(np.uint8)

    def __init__(
        self, records: Any, name: str, image_key: str, label_key: str | None, class_names: tuple[str, ...] | None,
        image_size: int, channels: int,
    ):  # fmt: skip
        self.image_shape = (image_size, image_size, channels)
        self.num_classes = None if class_names is None else len(class_names)
        self.class_names = class_names
        self._records = records
        self._name = name
        self._image_key = image_key
        self._label_key = label_key

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} images")  # array_record raises ValueError
        record = self._records[index]
        name = f"{index} of {self._name}"
        image = read_image(
            io.BytesIO(record[self._image_key]), name, image_size=self.image_shape[0], channels=self.image_shape[2]
        )
        if self._label_key is None:
            return {"image": image, "condition": {}}
        label = int(record[self._label_key])
        if label < 0:
            raise ValueError(f"image {name} has the label {label}: TFDS published this split without labels")
        return {"image": image, "condition": {LABEL: np.int32(label)}}


def load(name: str, split: str, *, image_size: int, channels: int = 3, data_dir: str | None = None) -> TfdsImages:
    """One split of a prepared TFDS dataset.

    The image is the feature "image", or the only image feature; the label is the feature "label", or the only class
    label. "train" is the dataset's train split. "test" is its validation split, or else its test split; a dataset with
    a train split alone gives the last 10 % of it for "test" and the rest for "train". Images of any size become
    squares as in `decode.read_image`.

    Args:
        name: the dataset as TFDS writes it: "cifar10", "name/config", "name/config:version".
        split: "train" or "test".
        image_size: side of the square images in pixels.
        channels: 3 (RGB) or 1 (grey).
        data_dir: the folder with prepared datasets; None for TFDS's default (~/tensorflow_datasets or TFDS_DATA_DIR).

    Returns:
        The split, in TFDS's order.

    Raises:
        ValueError: an unknown dataset, one that is not prepared as array_record (with the command that prepares it),
            or one without an image feature of bytes.
    """
    records, (image_key, label_key, class_names) = _records(
        name, lambda splits: _tfds_split(name, split, splits), data_dir
    )
    return TfdsImages(records, f"tfds:{name} {split}", image_key, label_key, class_names, image_size, channels)


def encoded_images(name: str, split: str, data_dir: str | None = None) -> Sequence[bytes]:
    """The image files of one split as TFDS has them, for measuring: no square, no size, no labels.

    `split` is TFDS's own ("train", "test[:10%]"); everything else, and what is raised, as in `load`.
    """

    def choose(splits: list[str]) -> str:
        if split.partition("[")[0] not in splits:
            raise ValueError(f"TFDS dataset {name!r} has no split {split!r}; it has {', '.join(splits)}")
        return split

    records, (image_key, _, _) = _records(name, choose, data_dir)
    return _Column(records, image_key)


class _Column(Sequence[bytes]):
    """One feature of every record, read when asked for."""

    def __init__(self, records: Any, key: str):
        self._records, self._key = records, key

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} images")  # array_record raises ValueError
        return self._records[index][self._key]


def _records(
    name: str, choose: Callable[[list[str]], str], data_dir: str | None
) -> tuple[Any, tuple[str, str | None, tuple[str, ...] | None]]:
    """The records of the split chosen from the names of all, with encoded images, and `_features`."""
    import tensorflow_datasets as tfds  # half a second, and only this source needs it

    builder = open_builder(name, data_dir)
    option = f" --data_dir={data_dir}" if data_dir else ""
    prepare = f"./launch/local.sh prepare {name}"
    splits = builder.info.splits
    if not splits:
        raise ValueError(
            f"TFDS dataset {name!r} is not prepared in {builder.data_dir}: run `{prepare}{option}` once, which also "
            "installs TensorFlow, that only this step needs"
        )
    keys = _features(name, builder.info.features)
    try:
        records = builder.as_data_source(
            choose(list(splits)),
            # The encoded bytes: TFDS decodes with OpenCV where that is installed, and its pixels would depend on it.
            # (PartialDecoding, which would leave out the other features, fails in a data source.)
            decoders={keys[0]: tfds.decode.SkipDecoding()},
        )
    except NotImplementedError:
        raise ValueError(
            f"TFDS dataset {name!r} is prepared in {builder.data_dir} as {builder.info.file_format.value}, which "
            f"cannot be read at random: prepare it in another folder with `{prepare} --data_dir=<folder>`"
        ) from None
    return records, keys


def open_builder(name: str, data_dir: str | None, **options: Any) -> Any:
    """The builder with its metadata, from TFDS's own code or from the prepared files.

    Raises ValueError, one line, where there is none; options are those of `tfds.builder`.
    """
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(name, data_dir=data_dir, **options)
    except tfds.core.DatasetNotFoundError:
        known = tfds.list_builders(with_community_datasets=False)
        close = difflib.get_close_matches(name.partition("/")[0], known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        where = f"in {data_dir}" if data_dir else "in TFDS's default data_dir"
        raise ValueError(f"TFDS knows no dataset {name!r}, and none of that name is prepared {where}{hint}") from None
    except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ValueError(f"TFDS cannot open the dataset {name!r}: {reason}") from error


def _features(name: str, features: Any) -> tuple[str, str | None, tuple[str, ...] | None]:
    """Keys of the image and of the label, and the names of the classes."""
    import tensorflow_datasets as tfds

    keys = list(features.keys()) if hasattr(features, "keys") else []
    images = [key for key in keys if isinstance(features[key], tfds.features.Image)]
    image_key = "image" if "image" in images else images[0] if len(images) == 1 else None
    if image_key is None:
        found = f"several image features ({', '.join(images)}) and none named 'image'" if images else "no image feature"
        raise ValueError(f"TFDS dataset {name!r} has {found}; its features are {', '.join(keys)}")
    if features[image_key].np_dtype != np.uint8:
        raise ValueError(f"TFDS dataset {name!r} has {features[image_key].np_dtype} images, only uint8 can be read")
    labels = [key for key in keys if isinstance(features[key], tfds.features.ClassLabel)]
    label_key = "label" if "label" in labels else labels[0] if len(labels) == 1 else None
    if label_key is None:
        return image_key, None, None
    feature = features[label_key]
    return image_key, label_key, tuple(feature.int2str(index) for index in range(feature.num_classes))


def _tfds_split(name: str, split: str, available: list[str]) -> str:
    if "train" not in available:
        raise ValueError(f"TFDS dataset {name!r} has no train split, only {', '.join(available)}")
    test = next((candidate for candidate in TEST_SPLITS if candidate in available), None)
    if test is None:
        return f"train[:{100 - TEST_PERCENT}%]" if split == "train" else f"train[{100 - TEST_PERCENT}%:]"
    return "train" if split == "train" else test

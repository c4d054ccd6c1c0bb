import functools
import io
import pickle
import shutil
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from diffusion_jax.data import load_arrays, load_source
from diffusion_jax.data.sources import Split
from diffusion_jax.data.sources import tfds as tfds_source
from diffusion_jax.metrics.__main__ import tfds_images

CLASSES = ["ant", "bee", "cow"]


def png(index: int, size: tuple[int, int] = (8, 8)) -> bytes:
    """An image that says its own number: red is the index, green a left-to-right marker."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[..., 0] = index
    pixels[:, 0, 1] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def prepare(data_dir, name, features, examples):
    """Prepares {split: [example, ...]} as TFDS does, without TensorFlow; its code unregistered, only files remain."""

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = data_dir

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            del dl_manager
            return {split: self._generate_examples(split) for split in examples}

        def _generate_examples(self, split):
            yield from enumerate(examples[split])

    Builder.name = name
    Builder(data_dir=data_dir, file_format="array_record").download_and_prepare()


def photo_features():
    return {
        "id": tfds.features.Text(),
        "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
        "label": tfds.features.ClassLabel(names=CLASSES),
    }


def photos(start, stop, size=(8, 8)):
    return [{"id": str(i), "image": png(i, size), "label": CLASSES[i % 3]} for i in range(start, stop)]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    prepare(folder, "photos", photo_features(), {"train": photos(0, 30), "test": photos(100, 110)})
    prepare(folder, "train_only", photo_features(), {"train": photos(0, 50)})
    prepare(folder, "wide", photo_features(), {"train": photos(0, 4, (20, 10)), "validation": photos(4, 6)})
    prepare(
        folder,
        "unlabelled",
        {"photo": tfds.features.Image(shape=(None, None, 3)), "length": np.int64},
        {"train": [{"photo": png(i), "length": i} for i in range(3)]},
    )
    prepare(folder, "words", {"text": tfds.features.Text()}, {"train": [{"text": "no image"}]})
    prepare(folder, "hidden", photo_features(), {"train": [{**photos(0, 1)[0], "label": -1}]})
    return str(folder)


def load(data_dir, name, split: Split = "train", image_size=8, channels=3):
    return load_source(f"tfds:{name}", split, data_dir=data_dir, image_size=image_size, channels=channels)


def numbers(source):
    return sorted(int(example["image"][0, 0, 0]) for example in source)


def test_every_image_comes_once_with_its_label(data_dir):
    source = load(data_dir, "photos")
    assert source.class_names == tuple(CLASSES)
    assert source.num_classes == 3
    assert numbers(source) == list(range(30))
    for example in source:
        assert example["image"].dtype == np.uint8
        assert example["condition"]["label"].dtype == np.int32
        assert example["condition"]["label"] == example["image"][0, 0, 0] % 3
    assert numbers(load(data_dir, "photos", "test")) == list(range(100, 110))


def test_validation_serves_as_test_and_variable_sizes_become_squares(data_dir):
    source = load(data_dir, "wide", image_size=5, channels=1)
    assert source.image_shape == (5, 5, 1)
    images, labels = load_arrays(source)
    assert images.shape == (4, 5, 5, 1)
    assert images.max() < 5  # the white-green edge lies outside the central square
    assert sorted(labels) == [0, 0, 1, 2]
    assert numbers(load(data_dir, "wide", "test")) == [4, 5]


def test_worker_processes_can_be_sent_a_source(data_dir):
    source = load(data_dir, "photos")
    received = pickle.loads(cloudpickle.dumps(source))  # as Grain sends it
    np.testing.assert_array_equal(received[7]["image"], source[7]["image"])


def test_a_lone_train_split_is_divided(data_dir):
    train, test = numbers(load(data_dir, "train_only")), numbers(load(data_dir, "train_only", "test"))
    assert len(test) == 5
    assert sorted(train + test) == list(range(50))


def test_the_only_image_feature_is_found_and_labels_are_optional(data_dir):
    source = load(data_dir, "unlabelled")
    assert source.num_classes is None
    assert all(not example["condition"] for example in source)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("words", "'words' has no image feature; its features are text"),
        ("cifar1O", "knows no dataset 'cifar1O'.*did you mean 'cifar10'"),
        ("mnist", "'mnist' is not prepared in .*: run `./launch/local.sh prepare mnist --data_dir=.*`"),
        ("mnist/nothing", "cannot open the dataset 'mnist/nothing': .+"),
    ],
)
def test_datasets_that_cannot_be_used(data_dir, name, message):
    with pytest.raises(ValueError, match=message) as caught:
        load(data_dir, name)
    assert "\n" not in str(caught.value)


def test_a_split_published_without_labels(data_dir):
    with pytest.raises(ValueError, match="0 of tfds:hidden train has the label -1"):
        load(data_dir, "hidden")[0]


def test_a_dataset_prepared_in_another_format(data_dir, tmp_path):
    # Without TensorFlow no tfrecord file can be written; its metadata can.
    copy = tmp_path / "photos" / "1.0.0"
    shutil.copytree(Path(data_dir) / "photos" / "1.0.0", copy)
    info = copy / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match=r"as tfrecord, which cannot be read .*local.sh prepare photos --data_dir="):
        load(str(tmp_path), "photos")


def test_encoded_images_are_the_files_of_the_split(data_dir):
    """For measuring: TFDS's own splits, nothing cropped, decoded or relabelled."""
    files = tfds_source.encoded_images("wide", "train", data_dir)
    assert sorted(files) == sorted(png(i, (20, 10)) for i in range(4))  # TFDS has shuffled them
    assert len(tfds_source.encoded_images("photos", "test[:30%]", data_dir)) == 3
    assert len(tfds_source.encoded_images("hidden", "train", data_dir)) == 1  # labels do not matter
    with pytest.raises(ValueError, match="has no split 'valid'; it has train, validation"):
        tfds_source.encoded_images("wide", "valid", data_dir)


def test_the_measuring_command_names_its_images(data_dir, monkeypatch):
    monkeypatch.setattr(tfds_source, "encoded_images", functools.partial(tfds_source.encoded_images, data_dir=data_dir))
    items = list(tfds_images("wide/train"))
    assert [item.name for item in items] == [f"tfds:wide/train[{i}]" for i in range(4)]
    assert items[3].image.shape == (10, 20, 3)
    assert sorted(item.image[0, 0, 0] for item in items) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="expected tfds:NAME/SPLIT"):
        tfds_images("wide")

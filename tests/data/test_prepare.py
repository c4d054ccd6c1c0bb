"""The command that prepares a dataset, on one that needs neither the network nor TensorFlow."""

import pytest
import tensorflow_datasets as tfds

from diffusion_jax.data import prepare


class ToyPrepare(tfds.core.GeneratorBasedBuilder):
    """Three labels, and in the configuration "by_hand" an archive that nobody may download."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = (tfds.core.BuilderConfig(name="free"), tfds.core.BuilderConfig(name="by_hand"))
    MANUAL_DOWNLOAD_INSTRUCTIONS = "bring toy.tar"

    def _info(self):
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict({"label": tfds.features.ClassLabel(names=["a", "b"])})
        )

    def _split_generators(self, dl_manager):
        if self.builder_config.name == "by_hand":
            _ = dl_manager.manual_dir
        return {"train": ((index, {"label": index % 2}) for index in range(3))}

    def _generate_examples(self):
        raise NotImplementedError


def test_a_prepared_dataset_can_be_read_at_random(tmp_path, capsys):
    assert prepare.main(["toy_prepare/free", "--data_dir", str(tmp_path)]) == 0
    assert f"--config.data.name=tfds:toy_prepare/free --config.data.data_dir={tmp_path}" in capsys.readouterr().err
    source = tfds.builder("toy_prepare/free", data_dir=str(tmp_path)).as_data_source("train")
    assert [int(source[i]["label"]) for i in range(3)] == [0, 1, 0]


@pytest.mark.parametrize(
    ("name", "said"), [("toy_prepar", "did you mean 'toy_prepare'"), ("toy_prepare/by_hand", "bring toy.tar")]
)
def test_what_cannot_be_prepared_is_one_line(tmp_path, capfd, name, said):
    assert prepare.main([name, "--data_dir", str(tmp_path)]) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("diffusion_jax: ")]
    assert len(lines) == 1 and said in lines[0]

"""The fill rule: if it were off by anything, every parity test would compare two different networks."""

import json

import numpy as np
import pytest

from tests import golden


def test_a_tensor_is_a_function_of_its_name_alone():
    # drawn by hand: crc32 of b"conv_in.bias" is 373700257, of b"conv_in.weight" in the same way
    bias = [0.03939346596598625, -0.029111383482813835, 0.05568484589457512]
    weight = [-0.6617016196250916, -1.5860835313796997, -0.10493835061788559, -0.5082019567489624]
    np.testing.assert_array_equal(golden.fill("conv_in.bias", (3,)), np.array(bias, np.float32))
    np.testing.assert_array_equal(golden.fill("conv_in.weight", (2, 2, 1, 1)).ravel(), np.array(weight, np.float32))
    assert not np.array_equal(golden.fill("a.weight", (4, 4)), golden.fill("b.weight", (4, 4)))


def test_a_longer_tensor_of_the_same_name_starts_the_same():
    np.testing.assert_array_equal(golden.fill("x.bias", (100,))[:7], golden.fill("x.bias", (7,)))
    # the draw is scaled by the fan-in only: 4 inputs have half the size of 1
    np.testing.assert_array_equal(
        golden.fill("x.weight", (9, 4)).ravel()[:9], golden.fill("x.weight", (9, 1)).ravel() / 2
    )


@pytest.mark.parametrize("shape", [(64, 64), (32, 16, 3, 3), (8, 4, 3, 3, 3)])
def test_products_keep_the_variance(shape):
    weights = golden.fill("block.weight", shape)
    fan_in = np.prod(shape[1:])
    assert weights.dtype == np.float32 and weights.shape == shape
    assert abs(weights.std() * np.sqrt(fan_in) - 1) < 5 / np.sqrt(2 * weights.size)
    assert abs(weights.mean() * np.sqrt(fan_in)) < 5 / np.sqrt(weights.size)


def test_vectors_are_near_one_or_zero():
    weight, bias = golden.fill("norm.weight", (4096,)), golden.fill("norm.bias", (4096,))
    assert weight.dtype == bias.dtype == np.float32
    assert abs(weight.mean() - 1) < 0.005 and abs(weight.std() - 0.05) < 0.003
    assert abs(bias.mean()) < 0.005 and abs(bias.std() - 0.05) < 0.003


def test_fill_tensors_knows_inception(tmp_path, monkeypatch):
    shapes = {
        "a.conv.weight": [16, 8, 3, 3],
        "a.bn.weight": [8],
        "a.bn.running_mean": [8],
        "a.bn.running_var": [8],
        "a.bn.num_batches_tracked": [],
        "fc.weight": [4, 8],
    }
    for name in ("inception-fid", "pipeline/unet"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "tensors.json").write_text(json.dumps(shapes))
    monkeypatch.setattr(golden, "GOLDENS", tmp_path)
    plain, inception = golden.fill_tensors("pipeline/unet"), golden.fill_tensors("inception-fid")

    assert {name: list(tensor.shape) for name, tensor in inception.items()} == shapes
    np.testing.assert_allclose(inception["a.conv.weight"], 1.6 * plain["a.conv.weight"], rtol=1e-6)
    for same in ("a.bn.weight", "a.bn.running_mean", "fc.weight"):
        np.testing.assert_array_equal(inception[same], plain[same])
    # one draw behind both: a vector that is not a weight is 0.05 n
    np.testing.assert_allclose(inception["a.bn.running_var"], 1 + 4 * np.abs(plain["a.bn.running_var"]), rtol=1e-6)
    assert inception["a.bn.num_batches_tracked"] == 0


def test_files_are_read_by_name(tmp_path, monkeypatch):
    (tmp_path / "some").mkdir()
    np.savez(tmp_path / "some" / "golden.npz", sample=np.arange(3.0))
    (tmp_path / "some" / "schedulers.json").write_text('{"ddim": {"eta": 0.5}}')
    monkeypatch.setattr(golden, "GOLDENS", tmp_path)
    np.testing.assert_array_equal(golden.load("some")["sample"], [0, 1, 2])
    assert golden.config("some", "schedulers.json") == {"ddim": {"eta": 0.5}}

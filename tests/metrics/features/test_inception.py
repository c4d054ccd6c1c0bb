"""FID's Inception against torch-fidelity's, and its weights from every file that holds them."""

import pickle

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file
from tensorboardX.proto import graph_pb2

from diffusion_jax import metrics
from diffusion_jax.metrics import features
from diffusion_jax.metrics.features import inception, inception_weights
from tests import golden
from tests.readers import torch_writer

pytestmark = pytest.mark.filterwarnings("ignore:.*not a known file of inception")
GOLDEN = golden.load("inception-fid")
KEYS = {
    "64": "64",
    "192": "192",
    "768": "768",
    "pool": "2048",
    "logits": "logits",
    "logits_unbiased": "logits_unbiased",
}


@pytest.fixture(scope="module")
def extractor(tmp_path_factory):
    """From a file of the layout that pytorch-fid publishes."""
    folder = tmp_path_factory.mktemp("inception")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        path = folder / "pt_inception.pth"
        torch_writer.save(path, golden.fill_tensors("inception-fid"), torch_writer.stand_in(patch), legacy=True)
        extractor = features.load("inception", path)
        for file in (path, *folder.rglob("*.safetensors")):
            assert file.stat().st_size > 90_000_000
            file.unlink()  # pytest keeps its folders for a while
        return extractor


@pytest.mark.parametrize("size", ["32x32", "64x64", "299x299", "40x56"])
def test_features_are_those_of_torch_fidelity(extractor, size):
    outputs = jax.jit(extractor.apply)(extractor.params, GOLDEN[f"{size}/images"])
    assert set(outputs) == {*KEYS, "spatial", "features"}
    for ours, theirs in KEYS.items():
        expected = GOLDEN[f"{size}/{theirs}"]
        np.testing.assert_allclose(outputs[ours], expected, atol=2e-6 * np.abs(expected).max(), rtol=2e-6, err_msg=ours)
    np.testing.assert_array_equal(outputs["features"], outputs["pool"])
    assert outputs["spatial"].shape == (2, 2023)


def test_the_extractor_says_what_its_numbers_depend_on(extractor):
    assert extractor.name == "inception-2015-12-05" and extractor.feature_dim == 2048
    assert extractor.settings["precision"] == "float32-highest"
    assert extractor.settings["input_size"] == 299
    assert "TensorFlow 1" in extractor.settings["resize"] and extractor.settings["scaling"] == "(x - 128) / 128"


def test_spatial_features_are_the_first_channels_of_branch1x1_of_6d(extractor):
    """From the block's own input, row by row: (height, width, channel) in that order."""
    images = GOLDEN["32x32/images"]
    module = inception.Inception()

    def seen(params, images):
        _, state = module.apply({"params": params}, images, capture_intermediates=True, mutable=["intermediates"])
        return state["intermediates"]

    captured = jax.jit(seen)(extractor.params, images)
    (maps,) = captured["Mixed_6d"]["branch1x1"]["__call__"]
    (outputs,) = captured["__call__"]
    assert maps.shape == (2, 17, 17, 192)
    np.testing.assert_array_equal(outputs["spatial"].reshape(2, 17, 17, 7), maps[..., :7])


def test_average_pools_leave_the_padding_out_and_maximum_pools_ignore_it():
    x = np.full((1, 4, 5, 1), -3.0, np.float32)
    np.testing.assert_allclose(inception.average_pool(x), x, rtol=1e-6)
    np.testing.assert_array_equal(inception.max_pool(x, 1), x)


def network_inputs(images, preprocessing):
    return inception.Inception(preprocessing)._network_input(images)


def test_scalings():
    flat = np.stack([np.full((4, 4, 3), level, np.uint8) for level in (0, 128, 255)])
    for preprocessing, expected in (
        ("tf", (-1, 0, 127 / 128)),
        ("pytorch-fid", (-1, 1 / 255, 1)),
        ("clean", (-1, 0, 127 / 128)),
    ):
        np.testing.assert_allclose(network_inputs(flat, preprocessing)[:, 7, 9, 1], expected, atol=2e-6)


def test_levels_that_were_not_rounded(extractor):
    """A quarter of a level moves the input by a quarter of a level, and whole ones are those of uint8 images."""
    images = GOLDEN["32x32/images"]
    shift = network_inputs(images + np.float32(0.25), "tf") - network_inputs(images, "tf")
    np.testing.assert_allclose(shift, 0.25 / 128, atol=1e-6)
    early = jax.jit(lambda apply, x: apply(extractor.params, x)["64"], static_argnums=0)
    rounded, unrounded = early(extractor.apply, images), early(extractor.apply_unrounded, images.astype(np.float32))
    np.testing.assert_allclose(unrounded, rounded, rtol=1e-5)
    with pytest.raises(ValueError, match=r"images must be float32 \[B, H, W, 3\], got uint8"):
        early(extractor.apply_unrounded, images)


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            yield from equations(value.jaxpr) if hasattr(value, "jaxpr") else ()


def products(fast):
    """(kind, type of the numbers, precision) of every convolution and matrix product in the network."""
    module, images = inception.Inception(fast=fast), jax.ShapeDtypeStruct((1, 32, 32, 3), np.uint8)
    shapes = jax.eval_shape(module.init, jax.random.key(0), images)
    jaxpr = jax.make_jaxpr(module.apply)(shapes, images)
    found = [e for e in equations(jaxpr) if e.primitive.name in ("conv_general_dilated", "dot_general")]
    # two products resize, and one gives the logits
    assert len(found) == 94 + 3
    return [(e.primitive.name, e.invars[0].aval.dtype.name, e.params["precision"]) for e in found]


def test_accelerators_may_not_round_unless_they_are_asked_to():
    highest = (jax.lax.Precision.HIGHEST,) * 2
    assert {(kind, precision) for _, kind, precision in products(fast=False)} == {("float32", highest)}
    fast = products(fast=True)
    assert {(kind, precision) for _, kind, precision in fast[2:-1]} == {("bfloat16", None)}
    assert {(kind, precision) for _, kind, precision in (*fast[:2], fast[-1])} == {("float32", highest)}
    assert features.precision_name(True) == "fast"


@pytest.mark.parametrize("images", [np.zeros((1, 8, 8, 3), np.float32), np.zeros((8, 8, 3), np.uint8)])
def test_other_images_are_refused(extractor, images):
    with pytest.raises(ValueError, match=r"images must be uint8 \[B, H, W, 3\]"):
        extractor.apply(extractor.params, images)


# The files, with small kernels in place of the real ones: what is at stake is names, axes and folding.


def small_network():
    """torchvision's names -> tensors; and what the parameters have to be."""
    draw = np.random.default_rng(0)
    tensors, params = {}, {}
    for path, _ in inception_weights.units():
        name = ".".join(path)
        kernel = draw.standard_normal((4, 5, 2, 3), np.float32)
        gamma, beta, mean = (draw.standard_normal(4).astype(np.float32) for _ in range(3))
        variance = draw.uniform(0.5, 2, 4).astype(np.float32)
        parts = {"weight": gamma, "bias": beta, "running_mean": mean, "running_var": variance}
        tensors |= {f"{name}.conv.weight": kernel} | {f"{name}.bn.{part}": array for part, array in parts.items()}
        tensors[f"{name}.bn.num_batches_tracked"] = np.array(0)
        scale = gamma.astype(float) / np.sqrt(variance.astype(float) + 1e-3)
        params["/".join(path)] = (kernel.transpose(2, 3, 1, 0) * scale, beta - mean * scale)
    tensors["fc.weight"] = draw.standard_normal((1008, 2048), np.float32)
    tensors["fc.bias"] = draw.standard_normal(1008).astype(np.float32)
    params["fc"] = (tensors["fc.weight"].T, tensors["fc.bias"])
    return tensors, params


TENSORS, PARAMS = small_network()


def write_safetensors(folder, patch):
    save_file(TENSORS, folder / "x.safetensors")
    return folder / "x.safetensors"


def write_npz(folder, patch):
    np.savez(folder / "x.npz", **TENSORS)
    return folder / "x.npz"


def write_zip(folder, patch):
    torch_writer.save(folder / "x.pth", TENSORS, torch_writer.stand_in(patch))
    return folder / "x.pth"


def write_legacy(folder, patch):
    torch_writer.save(folder / "x.pth", TENSORS, torch_writer.stand_in(patch), legacy=True)
    return folder / "x.pth"


def write_graph(folder, patch):
    """classify_image_graph_def.pb"""
    graph = graph_pb2.GraphDef()

    def add(name, array):
        node = graph.node.add(name=name, op="Const")
        node.attr["value"].tensor.dtype = 1
        for size in array.shape:
            node.attr["value"].tensor.tensor_shape.dim.add(size=size)
        node.attr["value"].tensor.tensor_content = array.tobytes()

    names = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
    for path, scope in inception_weights.units():
        name = ".".join(path)
        add(f"{scope}/conv2d_params", TENSORS[f"{name}.conv.weight"].transpose(2, 3, 1, 0))
        for ours, theirs in names.items():
            add(f"{scope}/batchnorm/{theirs}", TENSORS[f"{name}.bn.{ours}"])
    add("softmax/weights", TENSORS["fc.weight"].T)
    add("softmax/biases", TENSORS["fc.bias"])
    (folder / "x.pb").write_bytes(graph.SerializeToString())
    return folder / "x.pb"


def write_jax_fid(folder, patch):
    tree = {"fc": {"kernel": TENSORS["fc.weight"].T, "bias": TENSORS["fc.bias"]}}
    names = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    for path, _ in inception_weights.units():
        node, name = tree, ".".join(path)
        for part in path:
            node = node.setdefault(part, {})
        node["conv"] = {"kernel": TENSORS[f"{name}.conv.weight"].transpose(2, 3, 1, 0)}
        node["bn"] = {theirs: TENSORS[f"{name}.bn.{ours}"] for ours, theirs in names.items()}
    (folder / "x.pickle").write_bytes(pickle.dumps(tree))
    return folder / "x.pickle"


def write_nvidia(folder, patch):
    """Without gamma, which scales kernel and mean here; blocks E are flat."""
    tensors = {"output.weight": TENSORS["fc.weight"], "output.bias": TENSORS["fc.bias"]}
    for path, scope in inception_weights.units():
        name, (block, *rest) = ".".join(path), scope.split("/")
        joint = "_" if block in ("mixed_9", "mixed_10") else "."
        theirs = ".".join(part for part in ("layers", block, joint.join(rest)) if part)
        gamma = TENSORS[f"{name}.bn.weight"]
        tensors[f"{theirs}.weight"] = TENSORS[f"{name}.conv.weight"] * gamma[:, None, None, None]
        tensors[f"{theirs}.beta"] = TENSORS[f"{name}.bn.bias"]
        tensors[f"{theirs}.mean"] = TENSORS[f"{name}.bn.running_mean"] * gamma
        tensors[f"{theirs}.var"] = TENSORS[f"{name}.bn.running_var"]
    torch_writer.save(folder / "x.pt", tensors, torch_writer.stand_in(patch))
    return folder / "x.pt"


WRITERS = [write_safetensors, write_npz, write_zip, write_legacy, write_graph, write_jax_fid, write_nvidia]


@pytest.mark.parametrize("write", WRITERS)
def test_weights_from_every_file(tmp_path, monkeypatch, write):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = write(tmp_path, monkeypatch)
    for _ in ("from the file", "from the cache"):
        module, params = metrics.load_inception(path)
        leaves = {"/".join(key.key for key in keys): leaf for keys, leaf in jax.tree.leaves_with_path(params)}
        assert len(leaves) == 2 * 95
        for name, (kernel, bias) in PARAMS.items():
            assert leaves[f"{name}/kernel"].dtype == np.float32
            np.testing.assert_allclose(leaves[f"{name}/kernel"], kernel, rtol=1e-5, atol=1e-6, err_msg=name)
            np.testing.assert_allclose(leaves[f"{name}/bias"], bias, rtol=1e-5, atol=1e-6, err_msg=name)
    assert module.preprocessing == "tf" and not module.fast


def test_the_hash_is_that_of_the_weights_whatever_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    hashes = set()
    for write in WRITERS[:-1]:  # the last one rounds differently
        _, params = metrics.load_inception(write(tmp_path, monkeypatch))
        hashes.add(features.extractor.weights_sha256(params))
    assert len(hashes) == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: {"fc.weight": t["fc.weight"]}, "holds no Inception of 2015-12-05"),
        (lambda t: {k: v for k, v in t.items() if "6e.branch7x7_2" not in k}, "holds no tensor 'Mixed_6e.branch7x7_2"),
        (lambda t: t | {"fc.weight": t["fc.weight"][:1000]}, "of 1000 classes; the network of FID has 1008"),
        (lambda t: t | {"Mixed_5b.branch1x1.bn.bias": np.zeros(3, np.float32)}, "do not fit together"),
    ],
)
def test_other_networks_are_refused_in_one_line(tmp_path, monkeypatch, change, says):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    save_file(change(TENSORS), tmp_path / "x.safetensors")
    with pytest.raises(ValueError) as caught:
        metrics.load_inception(tmp_path / "x.safetensors")
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_unknown_preprocessing_is_refused():
    with pytest.raises(ValueError, match="could be tf, pytorch-fid, clean"):
        features.load("inception", preprocessing="torch")

"""DINOv2 and CLIP's vision tower against transformers, on tiny networks (write_goldens.py), read from files."""

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from diffusion_jax import readers
from diffusion_jax.metrics import features
from diffusion_jax.metrics.features import clip_vision, dinov2, transformer_weights
from diffusion_jax.metrics.features.extractor import unflattened
from diffusion_jax.metrics.features.vision_transformer import VisionTransformer, interpolation_matrix
from tests import golden
from tests.readers import torch_writer

HEADS = 3
MODULES = {"dinov2-tiny": dinov2, "dinov2-tiny-swiglu": dinov2, "clip-vision-tiny": clip_vision}


def leaves_of(module, tensors, path):
    """The parameters, through a file."""
    save_file(tensors, path)
    return transformer_weights.to_params(readers.read_tensors(path), module.LAYOUTS, where="file", covers="it")


def normalised(module, images):
    mean, deviation = (np.array(part, np.float32) for part in (module.MEAN, module.DEVIATION))
    return (images.astype(np.float32) / 255 - mean) / deviation


def outputs(architecture, leaves, inputs):
    network = VisionTransformer(architecture)
    return jax.jit(lambda params, inputs: network.apply({"params": params}, inputs))(unflattened(leaves), inputs)


@pytest.mark.parametrize("name", MODULES)
def test_features_are_those_of_transformers(tmp_path, name):
    module, expected = MODULES[name], golden.load(name)
    leaves = leaves_of(module, golden.fill_tensors(name), tmp_path / "model.safetensors")
    architecture = module.architecture(leaves, heads=HEADS)
    # not the original's interpolation, which transformers does not have
    architecture = type(architecture)(**{**vars(architecture), "interpolation_offset": 0.0})
    for size in ("", "_84") if module is dinov2 else ("",):
        ours = outputs(architecture, leaves, normalised(module, expected[f"images{size}"]))
        theirs = expected["image_embeds" if module is clip_vision else f"features{size}"]
        np.testing.assert_allclose(ours, theirs, atol=3e-6 * np.abs(theirs).max(), err_msg=size)


def test_architectures_follow_from_the_shapes(tmp_path):
    found = {}
    for name, module in MODULES.items():
        leaves = leaves_of(module, golden.fill_tensors(name), tmp_path / "model.safetensors")
        found[name] = module.architecture(leaves, heads=HEADS)
    plain, swiglu, clip = found.values()
    assert (plain.activation, swiglu.activation, clip.activation) == ("gelu", "swiglu", "quick_gelu")
    assert (plain.width, plain.depth, plain.hidden, plain.grid, plain.projection) == (24, 2, 72, 5, None)
    assert (clip.width, clip.depth, clip.hidden, clip.grid, clip.patch, clip.projection) == (24, 2, 40, 3, 14, 16)


def test_positions_are_interpolated_as_in_the_original_dinov2():
    expected = golden.load("dinov2-tiny")["positions_3_offset"]
    table = golden.fill_tensors("dinov2-tiny")["embeddings.position_embeddings"][0, 1:].reshape(5, 5, 24)
    matrix = interpolation_matrix(5, 3, 0.1)
    np.testing.assert_allclose(np.einsum("oi,pj,ijc->opc", matrix, matrix, table), expected, atol=1e-6)
    other = interpolation_matrix(5, 3, 0.0)
    assert np.abs(np.einsum("oi,pj,ijc->opc", other, other, table) - expected).max() > 1e-2


def original_dinov2(tensors):
    """The names of the original repository."""
    renamed = {
        "cls_token": tensors["embeddings.cls_token"],
        "mask_token": tensors["embeddings.mask_token"],
        "pos_embed": tensors["embeddings.position_embeddings"],
        "norm.weight": tensors["layernorm.weight"],
        "norm.bias": tensors["layernorm.bias"],
    }
    words = {"layer_scale1.lambda1": "ls1.gamma", "layer_scale2.lambda1": "ls2.gamma"}
    words |= {"mlp.weights_in": "mlp.w12", "mlp.weights_out": "mlp.w3", "attention.output.dense": "attn.proj"}
    for leaf in ("weight", "bias"):
        renamed[f"patch_embed.proj.{leaf}"] = tensors[f"embeddings.patch_embeddings.projection.{leaf}"]
        for block in range(2):
            parts = [
                tensors[f"encoder.layer.{block}.attention.attention.{p}.{leaf}"] for p in ("query", "key", "value")
            ]
            renamed[f"blocks.{block}.attn.qkv.{leaf}"] = np.concatenate(parts)
    for name, tensor in tensors.items():
        if name.startswith("encoder.layer.") and ".attention.attention." not in name:
            name = name.replace("encoder.layer.", "blocks.")
            for theirs, ours in words.items():
                name = name.replace(theirs, ours)
            renamed[name] = tensor
    return renamed


def original_clip(tensors):
    """The names of OpenAI's files, whose numbers are float16."""
    words = {"vision_model.encoder.layers.": "visual.transformer.resblocks.", "layer_norm": "ln_"}
    words |= {"self_attn.out_proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    words |= {"vision_model.post_layernorm": "visual.ln_post", "vision_model.pre_layrnorm": "visual.ln_pre"}
    words |= {"vision_model.embeddings.patch_embedding": "visual.conv1"}
    renamed = {
        "visual.class_embedding": tensors["vision_model.embeddings.class_embedding"],
        "visual.positional_embedding": tensors["vision_model.embeddings.position_embedding.weight"],
        "visual.proj": np.ascontiguousarray(tensors["visual_projection.weight"].T),
        "logit_scale": np.array(4.6, np.float32),
    }
    for block in range(2):
        for leaf in ("weight", "bias"):
            parts = [tensors[f"vision_model.encoder.layers.{block}.self_attn.{p}_proj.{leaf}"] for p in ("q", "k", "v")]
            renamed[f"visual.transformer.resblocks.{block}.attn.in_proj_{leaf}"] = np.concatenate(parts)
    for name, tensor in tensors.items():
        if not any(part in name for part in ("q_proj", "k_proj", "v_proj", "class_", "position", "visual_")):
            for theirs, ours in words.items():
                name = name.replace(theirs, ours)
            renamed[name] = tensor
    return renamed


@pytest.mark.parametrize("name", MODULES)
def test_the_original_files_give_the_same_parameters(tmp_path, monkeypatch, name):
    module, tensors = MODULES[name], golden.fill_tensors(name)
    expected = leaves_of(module, tensors, tmp_path / "model.safetensors")
    original = original_clip(tensors) if module is clip_vision else original_dinov2(tensors)
    torch_writer.save(tmp_path / "original.pth", original, torch_writer.stand_in(monkeypatch))
    read = readers.read_tensors(tmp_path / "original.pth")
    leaves = transformer_weights.to_params(read, module.LAYOUTS, where="file", covers="it")
    assert leaves.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(leaves[path], array, err_msg=path)


IMAGES = np.random.default_rng(3).integers(0, 256, (2, 50, 80, 3), np.uint8)


def pillow(image, size):
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))


def test_dinov2_sees_whole_images_resized_by_pillow(tmp_path):
    leaves = leaves_of(dinov2, golden.fill_tensors("dinov2-tiny"), tmp_path / "model.safetensors")
    architecture = dinov2.architecture(leaves, heads=HEADS)
    extractor = dinov2.extractor("tiny", architecture, unflattened(leaves), False, "dgm-eval")
    resized = np.stack([pillow(image, 224) for image in IMAGES])
    expected = np.asarray(outputs(architecture, leaves, normalised(dinov2, resized)))
    ours = jax.jit(extractor.apply)(extractor.params, IMAGES)["features"]
    np.testing.assert_allclose(ours, expected, atol=1e-3 * np.abs(expected).max())
    assert extractor.settings["resize"] == dinov2.PREPROCESSING["dgm-eval"] and extractor.feature_dim == 24
    other = dinov2.extractor("tiny", architecture, unflattened(leaves), False, "edm2")
    assert other.settings["resize"] != extractor.settings["resize"]


def test_clip_sees_the_central_square(tmp_path):
    leaves = leaves_of(clip_vision, golden.fill_tensors("clip-vision-tiny"), tmp_path / "model.safetensors")
    architecture = clip_vision.architecture(leaves, heads=HEADS)
    cmmd = clip_vision.extractor("tiny", architecture, unflattened(leaves), False, "cmmd")
    squares = np.ascontiguousarray(IMAGES[:, :, 15:65])
    expected = np.asarray(
        outputs(architecture, leaves, normalised(clip_vision, np.stack([pillow(image, 42) for image in squares])))
    )
    ours = jax.jit(cmmd.apply)(cmmd.params, IMAGES)["features"]
    np.testing.assert_allclose(ours, expected, atol=1e-3 * np.abs(expected).max())
    own = clip_vision.extractor("tiny", architecture, unflattened(leaves), False, "clip")
    square = [np.asarray(jax.jit(extractor.apply)(extractor.params, squares)["features"]) for extractor in (cmmd, own)]
    np.testing.assert_array_equal(*square)
    with pytest.raises(ValueError, match="it could be cmmd, clip"):
        clip_vision.extractor("tiny", architecture, unflattened(leaves), False, "tf")


def test_by_name_from_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, module, rule in (
        ("dinov2-vits14", dinov2, "dinov2-tiny"),
        ("clip-vitb32", clip_vision, "clip-vision-tiny"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        save_file(golden.fill_tensors(rule), folder / "model.safetensors")
        with pytest.raises(ValueError, match=f"which is not {name}") as caught:
            load(name, folder)
        assert "\n" not in str(caught.value)
        tiny = (24, 2) if module is dinov2 else clip_vision.NETWORKS[name]._replace(size=42, width=24, patch=14)
        monkeypatch.setitem(module.NETWORKS, name, tiny)
        monkeypatch.setattr(module, "HEAD", 8)
        extractor = load(name, folder)
        assert extractor.name == name
        assert np.isfinite(jax.jit(extractor.apply)(extractor.params, IMAGES)["features"]).all()


def load(name, folder):
    if name.startswith("dinov2"):  # nobody has published the hashes of its files
        return features.load(name, folder)
    with pytest.warns(UserWarning, match="not a known file"):
        return features.load(name, folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: {"x": np.zeros(2)}, "holds no DINOv2: no embeddings.cls_token or cls_token among its 1 tensors"),
        (
            lambda t: {k: v for k, v in t.items() if "1.mlp.fc2.bias" not in k},
            "holds no tensor 'encoder.layer.1.mlp.fc2",
        ),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, monkeypatch, change, says):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    save_file(change(golden.fill_tensors("dinov2-tiny")), tmp_path / "model.safetensors")
    with pytest.raises(ValueError) as caught:
        features.load("dinov2-vits14", tmp_path)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_without_a_network_the_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    for name, file in (("dinov2-vitl14", "dinov2_vitl14_pretrain.pth"), ("clip-vitl14-336", "ViT-L-14-336px.pt")):
        with pytest.raises(ValueError, match=f"put {file} .* at {tmp_path}"):
            features.load(name)

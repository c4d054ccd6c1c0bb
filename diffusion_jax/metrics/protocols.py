"""Protocols: everything besides the images that a score depends on, as data.

Two numbers can be compared only if they come from one protocol. What published implementations do was read in their
code; `docs/metrics.md` has the table and how far their numbers lie apart.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from diffusion_jax.metrics.neighbours import Precision

INCEPTION = "inception-2015-12-05"
# The networks of FD-DINOv2 and CMMD.
DINOV2, CLIP = "dinov2-vitl14", "clip-vitl14-336"
# Ways to bring an image to the network's input, and fields that only Inception's protocols fix.
TF, PYTORCH_FID, CLEAN = "tf", "pytorch-fid", "clean"


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How scores of one published implementation come about.

    Attributes:
      name: by which it is asked for.
      reproduces: the implementation.
      extractor: the network whose features it uses.
      preprocessing: resize and scaling, a key of `features.inception.PREPROCESSING`.
      covariance_divisor: "N - 1" or "N".
      samples: how many generated images its published numbers are of.
      reference: what its published reference statistics are of.
      reference_rows: most reference images, evenly spaced, that are compared image by image; moments are of all.
      score_split_size: images a split of the Inception Score; None for ten equal splits.
      score_shuffle_seed: images are shuffled before they are split, with NumPy's RandomState; None for no shuffle.
      kernel_subsets, kernel_subset_size: of the kernel distance.
      neighbours: k of precision and recall.
      neighbour_precision: float type of their distances.
      differs: what is known to differ from the implementation here; empty if nothing is.
    """

    name: str
    reproduces: str
    extractor: str = INCEPTION
    preprocessing: str = TF
    covariance_divisor: str = "N - 1"
    samples: int = 50_000
    reference: str = "the training set"
    reference_rows: int = 50_000
    score_split_size: int | None = None
    score_shuffle_seed: int | None = None
    kernel_subsets: int = 100
    kernel_subset_size: int = 1000
    neighbours: int = 3
    neighbour_precision: Precision = "float64"
    differs: str = ""

    def score_splits(self, num_images: int) -> int:
        """Splits of the Inception Score of so many images."""
        return 10 if self.score_split_size is None else -(-num_images // self.score_split_size)

    def record(self) -> dict[str, Any]:
        """The protocol as it is written beside every number."""
        return dataclasses.asdict(self)


_VGG = "precision and recall there use VGG16's features, here the extractor's"
PROTOCOLS: Mapping[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "adm",
            "evaluator.py of guided-diffusion (Dhariwal & Nichol 2021)",
            reference="mu and sigma of the whole training set; precision and recall of the 10,000 images in arr_0",
            reference_rows=10_000,
            score_split_size=5000,
            neighbour_precision="float16",
            differs="the order of sums of its float16 distances is not known: precision and recall agree to about 1e-3",
        ),
        Protocol("tf", "TTUR's fid.py (Heusel et al. 2017)"),
        Protocol(
            "pytorch-fid",
            "pytorch-fid: half-pixel bilinear resize and 2 x / 255 - 1",
            preprocessing=PYTORCH_FID,
        ),
        Protocol(
            "clean",
            "clean-fid, mode clean (Parmar et al. 2022): antialiased bicubic resize in float",
            preprocessing=CLEAN,
            differs="the resize runs on the device: 0.01 of 255 from Pillow's",
        ),
        Protocol(
            "edm",
            "fid.py of EDM (Karras et al. 2022)",
            reference="mu and sigma of the training set; the paper reports the least of three runs",
        ),
        Protocol(
            "stylegan3",
            "metrics of StyleGAN2-ADA and 3",
            reference_rows=200_000,
            covariance_divisor="N",
            differs=_VGG,
        ),
        Protocol(
            "torch-fidelity",
            "torch-fidelity 0.4, inception-v3-compat",
            score_shuffle_seed=2020,
            differs=_VGG,
        ),
    )
}
DEFAULT = "tf"


def get(name: str) -> Protocol:
    """The protocol of that name; raises ValueError with those that exist."""
    if name not in PROTOCOLS:
        raise ValueError(f"protocol {name!r} is unknown; it can be {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def of_features(extractor: str) -> Protocol:
    """The protocol of features that no published implementation measures with: this project's own."""
    return Protocol(
        f"diffusion_jax-{extractor}",
        "diffusion_jax; not comparable with any FID",
        extractor=extractor,
        preprocessing="the extractor's own, see settings",
        samples=50_000,
        reference="as named",
        neighbours=5 if extractor.startswith("dinov2") else 3,
    )

"""Sections of the config that methods share: how images are drawn, and how they are scored."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from diffusion_jax.diffusion.arrays import check_seed
from diffusion_jax.metrics import measure, protocols, quantisation
from diffusion_jax.options import check_choice, check_least, described

CHECKPOINTS = ("newest", "best")
SAVES = ("none", "images", "npz")


@described(
    num_images="images that are drawn; samples.png shows the first of many",
    batch_size="images that are drawn at once, over all devices",
    num_frames="frames of sampling.gif",
    save="all images as files of their own beside samples.png: images (DIR/images) or npz (DIR/samples.npz); or none",
    every="updates between pictures of samples in TensorBoard while it trains; 0: none",
    seed="of what is drawn; None: config.seed",
    ema_width="width of the average to draw with, from the snapshots of posthoc_ema; None: the average of ema",
)
@dataclasses.dataclass(frozen=True)
class Sampling:
    """Of every run: what is drawn for its pictures."""

    num_images: int = 64
    batch_size: int = 64
    num_frames: int = 32
    save: str = "none"
    every: int = 0
    seed: int | None = None
    ema_width: float | None = None

    def __post_init__(self) -> None:
        check_least(1, num_images=self.num_images, batch_size=self.batch_size, num_frames=self.num_frames)
        check_least(0, every=self.every)
        check_choice("save", self.save, SAVES)
        if self.seed is not None:
            check_seed("seed", self.seed)


@described(
    checkpoint="parameters that sample and evaluate use: newest, or best, which keep_best keeps",
    max_reference_images="images of each split that are held in memory for scores of the run's own classifier",
)
@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Of every run: what its scores are taken of."""

    checkpoint: str = "newest"
    max_reference_images: int = 10_000

    def __post_init__(self) -> None:
        check_choice("checkpoint", self.checkpoint, CHECKPOINTS)
        check_least(2, max_reference_images=self.max_reference_images)


@described(
    num_images="images that are generated for the scores",
    classifier_steps="updates of the small classifier that scores use; None: as suits the size of the data",
    every="steps between scores of the moving average in training; 0: none are taken",
    scored_images="images that are generated for each of those scores",
    metrics="the scores: fid, kid, prc (precision and recall), dc, is, ... as in ./launch/local.sh metrics",
    features="whose features are compared, such as inception; None: those of a small classifier of the data",
    weights="file of the weights of these features; None: where they were installed, or in the cache",
    protocol="of Inception's features: tf, adm, edm and others; None: the usual one",
    quantisation="how generated images become 8 bits for these features: half_up, floor or none",
    reference="statistics file that images are compared with; None: the training images",
    reference_images="how many training images are compared with, evenly spaced; None: all",
    keep_best="metric by which the best parameters are kept in DIR/best; None: they are not",
    patience="scores in a row without a better one that end the training; 0: never",
)
@dataclasses.dataclass(frozen=True)
class ImageEvaluation(Evaluation):
    """Scores of generated images, at the end, in training and in sweeps."""

    num_images: int = 1000
    classifier_steps: int | None = None
    every: int = 0
    scored_images: int = 512
    metrics: tuple[str, ...] = ("fid",)
    features: str | None = None
    weights: str | None = None
    protocol: str | None = None
    quantisation: str = "half_up"
    reference: str | None = None
    reference_images: int | None = None
    keep_best: str | None = None
    patience: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        # a covariance needs two
        check_least(2, num_images=self.num_images, scored_images=self.scored_images)
        check_least(2, reference_images=self.reference_images)
        check_least(1, classifier_steps=self.classifier_steps)
        check_least(0, every=self.every, patience=self.patience)
        if not self.metrics:
            raise ValueError(f"metrics is empty; it can hold {', '.join(measure.METRICS)}")
        if self.features is not None or self.every:
            # None: the small classifier, which no metric names
            name = "a classifier" if self.features is None else measure.resolve_features(self.features)
            measure.check_metrics(self.metrics, name)
        if self.protocol is not None:
            protocols.get(self.protocol)
        self._check_quantisation()
        for field in ("reference", "weights"):
            path = getattr(self, field)
            if path is not None and not Path(path).expanduser().exists():
                raise ValueError(f"{field} is {path!r}; there is no such file")

    def _check_quantisation(self) -> None:
        check_choice("quantisation", self.quantisation, quantisation.RULES)
        if (
            self.quantisation == "none"
            and self.features is not None
            and measure.resolve_features(self.features) != protocols.INCEPTION
        ):
            raise ValueError(
                f"quantisation is 'none', which is of Inception's features, but features is {self.features!r}; set it "
                "to 'half_up' or 'floor'"
            )


@described(num_likelihood_images="test images whose bits per dimension are estimated; 0: none are")
@dataclasses.dataclass(frozen=True)
class LikelihoodEvaluation(ImageEvaluation):
    """Of models that can also say how likely an image is."""

    num_likelihood_images: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(0, num_likelihood_images=self.num_likelihood_images)

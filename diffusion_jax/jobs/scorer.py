"""Scores of parameters, in training and in sweeps: images go from the sampler to the features on the devices.

The numbers are those of `./launch/local.sh metrics` under the same names; what differs between runs and machines
is in the protocol, which `Scorer.protocol` gives.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from diffusion_jax import data
from diffusion_jax.config import ConfigError
from diffusion_jax.config.build import section
from diffusion_jax.jobs import references
from diffusion_jax.jobs.generate import Generator
from diffusion_jax.jobs.session import Session
from diffusion_jax.jobs.work_directory import write_json
from diffusion_jax.metrics import features, foreign_statistics, measure, protocols, quantisation, statistics
from diffusion_jax.metrics.features.extractor import Extractor
from diffusion_jax.metrics.metric import Need
from diffusion_jax.training.distributed import by_first
from diffusion_jax.training.scoring import Scoring

_quantised = jax.jit(quantisation.quantised, static_argnames="rule")


class Scorer:
    """Scores generated images of one run by config.evaluation. Everything is loaded when it is first used.

    Without config.evaluation.features they are those of a small classifier, trained here on the training split and
    compared with the test split; the features of known networks are compared with the training split, as published
    numbers are.
    """

    def __init__(self, session: Session):
        self._session = session
        self._config = session.config.evaluation
        self.metrics = tuple(self._config.metrics)
        if self._config.features is None and session.train_source.num_classes is None:
            raise ConfigError(
                "config.evaluation.features is unset, but the data has no labels to train a classifier on; set it to "
                f"one of {', '.join(features.NAMES)}"
            )
        with section("evaluation"):
            measure.check_metrics(self.metrics, self._name)
            measure.refuse_missing(self.metrics, self._missing)
            if self._config.keep_best:
                _check_kept(self._config.keep_best, self.metrics)

    @property
    def _missing(self) -> dict[Need, str]:
        """What a run does not have of what a metric could need image by image."""
        has_labels = self._session.labels(np.arange(1)) is not None
        needs = (Need.PROMPTS, Need.PAIRS) if has_labels else (Need.PROMPTS, Need.PAIRS, Need.LABELS)
        return {need: "and this run draws from none" for need in needs}

    @property
    def _name(self) -> str:
        if self._config.features is None:
            return f"classifier-{self._session.config.data.name}"
        return measure.resolve_features(self._config.features)

    @property
    def quantisation(self) -> str:
        """How generated images become levels; for the small classifier, which no paper has, to the nearest."""
        return "half_up" if self._config.features is None else self._config.quantisation

    @functools.cached_property
    def published(self) -> protocols.Protocol:
        """The protocol that the scores follow."""
        with section("evaluation"):
            if self._name != protocols.INCEPTION:
                return protocols.of_features(self._name)
            return protocols.get(self._config.protocol or protocols.DEFAULT)

    @functools.cached_property
    def extractor(self) -> Extractor:
        """What the features come from; raises ConfigError, in one line, where its weights are missing."""
        session = self._session
        if self._config.features is None:
            return features.classifier_extractor(session.classifier(), self._name)
        with section("evaluation"):
            preprocessing = self.published.preprocessing if self._name == protocols.INCEPTION else None
            return features.load(self._name, self._config.weights, preprocessing=preprocessing)

    @functools.cached_property
    def reference(self) -> measure.Side:
        """The other side of every comparison: of a statistics file, or of the data's images."""
        made_by = statistics.identity(self.extractor, self.published)
        if self._config.reference is not None:
            with section("evaluation"):
                found = foreign_statistics.load(self._config.reference, self._name)
                if found is None:
                    raise ConfigError(f"config.evaluation.reference {self._config.reference!r} is no statistics file")
                statistics.check_comparable(found.made_by, made_by, (self._config.reference, "config.evaluation"))
                return measure.Side(found.features, found.spatial, found.rows, None, found.num_images)
        limit = self._config.max_reference_images if self._config.features is None else self._config.reference_images
        return references.of_images(
            self._session,
            self._reference_source,
            limit,
            self.metrics,
            self.extractor,
            self.published,
            is_cached=self._config.features is not None,
        )

    @property
    def _reference_source(self) -> data.Source:
        return self._session.test_source if self._config.features is None else self._session.train_source

    def score(self, generator: Generator, params: Any, num_images: int | None = None) -> dict[str, float]:
        """The scores of the first images of the run (config.evaluation.scored_images of them) from these parameters.

        The same on every process.
        """
        side = self.generated(generator, params, num_images or self._config.scored_images, intervals=False)
        return self.compare(side, intervals=False)

    def compare(self, side: measure.Side, intervals: bool) -> dict[str, Any]:
        """The numbers of what `generated` gave, by process 0."""
        reference = self.reference
        return by_first(lambda: measure.score(self.metrics, side, reference, self.published, intervals=intervals))

    def generated(self, generator: Generator, params: Any, num_images: int, intervals: bool) -> measure.Side:
        """What the metrics need of so many images."""
        extractor = self.extractor
        if self.quantisation == "none":
            assert extractor.apply_unrounded is not None
            extractor = dataclasses.replace(extractor, apply=extractor.apply_unrounded)
        extraction = measure.extraction_for(
            self.metrics, extractor, is_generated=True, intervals=intervals, mesh=self._session.mesh
        )
        for images, count in generator.on_devices(num_images, params):
            extraction.add_sharded(_quantised(images, rule=self.quantisation), count)
        labels = self._session.labels(np.arange(num_images))
        return measure.side_of(extraction, self.published, labels=labels)

    def protocol(self, num_images: int | None = None) -> dict[str, Any]:
        """What the numbers depend on."""
        split = "test" if self._config.features is None else "training"
        decoded = "" if self._session.decoder is None else ", decoded latents"
        return self.published.record() | {
            **statistics.identity(self.extractor, self.published),
            "quantisation": self.quantisation,
            "generated_images": num_images or self._config.scored_images,
            "reference": self._config.reference or f"{self._session.config.data.name}, {split} split{decoded}",
            "reference_images": self.reference.num_images,
            "parameters": "EMA",
            "device": jax.devices()[0].device_kind,
        }


def final_scores(session: Session, generator: Generator) -> dict[str, Any] | None:
    """Scores of config.evaluation.num_images images in known features, with standard errors and their protocol.

    None unless config.evaluation.features is set.
    """
    config = session.config.evaluation
    if config.features is None:
        return None
    scorer = Scorer(session)
    step, params = session.parameters
    side = scorer.generated(generator, params, config.num_images, intervals=True)
    scores = scorer.compare(side, intervals=True)
    return scores | {"protocol": scorer.protocol(config.num_images) | {"checkpoint_step": step}}


def training_scores(session: Session) -> Scoring | None:
    """What config.evaluation asks of the training loop; None if it takes no scores. Raises ConfigError."""
    config = session.config.evaluation
    if "every" not in config:  # of a method that draws no images
        return None
    if not config.every:
        if config.keep_best or config.patience:
            raise ConfigError("config.evaluation.keep_best and patience need scores: set config.evaluation.every")
        return None
    scorer, generator = Scorer(session), Generator(session)

    def evaluate(step: int, params: Any) -> dict[str, float]:
        scores = scorer.score(generator, params)
        if jax.process_index() == 0:
            write_json(session.workdir / "scoring.json", scorer.protocol())
        return scores

    best_by = measure.Names(scorer.published.extractor).main(config.keep_best) if config.keep_best else None
    with section("evaluation"):
        return Scoring(
            evaluate, config.every, best_by, bool(best_by) and measure.is_higher_better(str(best_by)), config.patience
        )


def _check_kept(metric: str, metrics: tuple[str, ...]) -> None:
    if metric not in metrics:
        raise ConfigError(
            f"config.evaluation.keep_best is {metric!r}, which is not computed; it can be {', '.join(metrics)}, or add "
            "it to config.evaluation.metrics"
        )

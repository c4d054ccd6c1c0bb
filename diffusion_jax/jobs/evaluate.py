"""Scores generated images against held-out ones: evaluation.json, every value with its protocol."""

from __future__ import annotations

import sys
import time

import jax

from diffusion_jax.jobs import scorer, sweep_scores
from diffusion_jax.jobs.generate import Generator
from diffusion_jax.jobs.session import Session
from diffusion_jax.metrics import scores

QUANTISATION = "half_up"


def evaluate(session: Session) -> None:
    """Draws config.evaluation.num_images images from the newest checkpoint and writes their scores.

    Beside those of config.evaluation.features there are always scores that need nobody's weights, of
    max_reference_images images at most. With labels in the data their features are those of a small classifier trained
    here on the training split; without, the images themselves, averaged down to 8x8. Several processes share everything
    that runs on devices.
    """
    config = session.config
    step, _ = session.parameters
    limit = config.evaluation.max_reference_images
    train, test = (session.images.load(source, limit) for source in (session.train_source, session.test_source))
    generator = Generator(session)
    # More could not be compared, and would not fit in memory; the scores of known features are of all.
    generated, requested = generator.draw(min(config.evaluation.num_images, limit), title="evaluation")
    own = session.method.scores(session)
    published = scorer.final_scores(session, generator)
    swept = sweep_scores.sweep(session)

    begun = time.monotonic()
    if session.train_source.num_classes is None:
        result = scores.score_generated_pixels(
            generated, train[0], test[0], dataset=config.data.name, quantisation=QUANTISATION, seed=config.seed
        )
    else:
        result = scores.score_generated(
            generated,
            requested,
            train,
            test,
            session.classifier(train),
            dataset=config.data.name,
            quantisation=QUANTISATION,
            class_names=session.train_source.class_names,
            seed=config.seed,
        )
    if not session.paints:  # all score, one writes
        return
    result["protocol"] |= {
        "checkpoint_step": step,
        "parameters": "EMA",
        "sampling_seed": config.seed if config.sampling.seed is None else config.sampling.seed,
        **session.method.protocol(session),
        "matmul_precision": config.training.matmul_precision,
        "device": jax.devices()[0].device_kind,
    }
    if session.decoder is not None:
        result["protocol"]["reference_images"] = "decoded latents"
    result |= own
    if published is not None:
        result["scores"] = published
    if swept is not None:
        result["sweep"] = swept
    result["seconds"] = {
        "compile_sampler": generator.compile_seconds,
        "sample": generator.sample_seconds,
        "score": time.monotonic() - begun,
    }
    session.write_json("evaluation.json", result)
    print(_summary(result), file=sys.stderr)


def _summary(result: dict) -> str:
    name = next(key.removesuffix("_ratio") for key in result if key.endswith("_ratio"))
    line = f"{name} {result[name]:.3f} (training images: {result[f'{name}_train_test']:.3f})"
    if "read_as_requested" in result:
        line += f", {result['read_as_requested']:.1%} read as the class asked for"
    return line

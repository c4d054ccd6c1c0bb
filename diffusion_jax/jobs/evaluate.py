"""Scores generated images against held-out ones: evaluation.json, every value with its protocol."""

from __future__ import annotations

import sys
import time

import jax

from diffusion_jax import data
from diffusion_jax.jobs.generate import Generator
from diffusion_jax.jobs.session import Session, write_json
from diffusion_jax.metrics import classifier, scores

QUANTISATION = "half_up"


def evaluate(session: Session) -> None:
    """Draws config.evaluation.num_images images from the newest checkpoint and writes their scores.

    With labels in the data the features are those of a small classifier trained here on the training split; without,
    the images themselves, averaged down to 8x8.
    """
    config = session.config
    step, _ = session.parameters
    limit = config.evaluation.max_reference_images
    train, test = (data.load_arrays(source, limit=limit) for source in (session.train_source, session.test_source))
    generator = Generator(session)
    generated, requested = generator.draw(config.evaluation.num_images, title="evaluation")

    begun = time.monotonic()
    num_classes = session.train_source.num_classes
    if num_classes is None:
        result = scores.score_generated_pixels(
            generated, train[0], test[0], dataset=config.data.name, quantisation=QUANTISATION, seed=config.seed
        )
    else:
        reader = classifier.train_classifier(*train, num_classes, seed=config.seed)
        result = scores.score_generated(
            generated,
            requested,
            train,
            test,
            reader,
            dataset=config.data.name,
            quantisation=QUANTISATION,
            class_names=session.train_source.class_names,
            seed=config.seed,
        )
    result["protocol"] |= {
        "checkpoint_step": step,
        "parameters": "EMA",
        "sampler": config.sampling.name,
        "sampler_steps": session.method.sampler.num_steps,
        "guidance_scale": config.sampling.guidance_scale if session.num_classes is not None else None,
        "matmul_precision": config.training.matmul_precision,
        "device": jax.devices()[0].device_kind,
    }
    result["seconds"] = {
        "compile_sampler": generator.compile_seconds,
        "sample": generator.sample_seconds,
        "score": time.monotonic() - begun,
    }
    write_json(session.workdir / "evaluation.json", result)
    print(_summary(result), file=sys.stderr)


def _summary(result: dict) -> str:
    name = next(key.removesuffix("_ratio") for key in result if key.endswith("_ratio"))
    line = f"{name} {result[name]:.3f} (training images: {result[f'{name}_train_test']:.3f})"
    if "read_as_requested" in result:
        line += f", {result['read_as_requested']:.1%} read as the class asked for"
    return line

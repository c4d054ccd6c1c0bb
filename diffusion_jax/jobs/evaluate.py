"""Scores generated images against held-out ones: evaluation.json, every value with its protocol."""

from __future__ import annotations

import functools
import sys
import time
from typing import Any

import jax
import numpy as np

from diffusion_jax import data
from diffusion_jax.jobs import measure, sweep_scores
from diffusion_jax.jobs.generate import Generator
from diffusion_jax.jobs.session import Session, write_json
from diffusion_jax.methods.diffusion import likelihood
from diffusion_jax.metrics import scores
from diffusion_jax.training import sharding

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
    train, test = (session.images(source, limit) for source in (session.train_source, session.test_source))
    generator = Generator(session)
    # More could not be compared, and would not fit in memory; the scores of known features are of all.
    generated, requested = generator.draw(min(config.evaluation.num_images, limit), title="evaluation")
    bits = _bits_per_dimension(session) if config.evaluation.num_likelihood_images else None
    published = measure.final_scores(session, generator)
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
    if jax.process_index() != 0:  # all score, one writes
        return
    result["protocol"] |= {
        "checkpoint_step": step,
        "parameters": "EMA",
        "sampler": config.sampling.name,
        "sampler_steps": session.method.sampler.num_steps,
        "guidance_scale": config.sampling.guidance_scale if session.guided or session.num_classes is not None else None,
        "matmul_precision": config.training.matmul_precision,
        "device": jax.devices()[0].device_kind,
    }
    if config.sampling.classifier:
        result["protocol"] |= {
            "classifier": config.sampling.classifier,
            "classifier_scale": config.sampling.classifier_scale,
        }
    if session.decoder is not None:
        result["protocol"]["reference_images"] = "decoded latents"
    if bits is not None:
        result["bits_per_dimension"] = bits
    if published is not None:
        result["scores"] = published
    if swept is not None:
        result["sweep"] = swept
    result["seconds"] = {
        "compile_sampler": generator.compile_seconds,
        "sample": generator.sample_seconds,
        "score": time.monotonic() - begun,
    }
    write_json(session.workdir / "evaluation.json", result)
    print(_summary(result), file=sys.stderr)


def _bits_per_dimension(session: Session) -> dict:
    """Mean and standard error over the first test images, without guidance."""
    config = session.config
    images, labels = data.load_arrays(session.test_source, limit=config.evaluation.num_likelihood_images)
    _, params = session.parameters
    split = sharding.batch_sharding(session.mesh)
    devices = sharding.num_shards(session.mesh)
    size = min(config.sampling.batch_size, -(-len(images) // devices) * devices)

    @functools.partial(jax.jit, out_shardings=sharding.replicated(session.mesh))
    def estimate(params: Any, images: jax.Array, labels: jax.Array, start: jax.Array) -> jax.Array:
        images, labels = jax.lax.with_sharding_constraint((images, labels), split)
        key = jax.random.fold_in(jax.random.key(config.seed), start)
        with jax.default_matmul_precision(config.training.matmul_precision):
            given = None if session.num_classes is None else labels
            return likelihood.bits_per_dimension(session.method, params, images, given, key)

    bits = []
    for start in range(0, len(images), size):
        rows = np.arange(start, start + size) % len(images)  # the last batch is filled up, so that one shape compiles
        values = estimate(params, data.to_float(images[rows]), labels[rows], np.int32(start))
        bits.append(np.asarray(values)[: len(images) - start])
    all_bits = np.concatenate(bits)
    return {
        "mean": float(all_bits.mean()),
        "standard_error": float(all_bits.std() / np.sqrt(len(all_bits))),
        "images": len(all_bits),
        "estimate": likelihood.estimate_name(session.method),
    }


def _summary(result: dict) -> str:
    name = next(key.removesuffix("_ratio") for key in result if key.endswith("_ratio"))
    line = f"{name} {result[name]:.3f} (training images: {result[f'{name}_train_test']:.3f})"
    if "read_as_requested" in result:
        line += f", {result['read_as_requested']:.1%} read as the class asked for"
    return line

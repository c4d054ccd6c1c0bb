"""The jobs that there are, in the order of --help. A new one is a file beside this one, and a record here."""

from __future__ import annotations

from diffusion_jax.jobs.job import Job

JOBS: dict[str, Job] = {
    job.name: job
    for job in (
        Job(
            "train",
            "train, resuming the newest checkpoint in the work directory",
            "train:train",
            check="starting:check",
            reads_data=True,
            leaves=("config.json", "checkpoints/", "metrics.jsonl"),
            writes=("timing.json", "scoring.json", "parameters.txt"),
        ),
        Job(
            "sample",
            "write samples.png and sampling.gif from the newest checkpoint; with --from draw from a published one",
            "sample:sample",
            "draw:command",
            reads_data=True,
            leaves=("samples.png", "sampling.gif"),
            writes=("real.png", "sampling.json", "samples.npz"),
        ),
        Job(
            "evaluate",
            "score generated images against held-out ones: evaluation.json",
            "evaluate:evaluate",
            reads_data=True,
            leaves=("evaluation.json",),
            writes=("sweep.png",),
        ),
        Job(
            "report",
            "write report.html from what the other jobs left",
            "report:report",
            needs=("metrics.jsonl", "samples.png", "sampling.gif", "evaluation.json"),
            leaves=("report.html",),
        ),
        Job(
            "replay",
            "run the step again at which training stopped, and say what is not finite where",
            "replay:replay",
            leaves=("replay/",),
        ),
        Job(
            "encode",
            "turn images into latents, once, for configs of latents; --mode encode --help lists its options",
            command="encode:main",
        ),
    )
}
# What runs without --mode.
WHOLE_RUN = ("train", "sample", "evaluate", "report")


def made_by(name: str) -> str:
    """The job that writes a file of the work directory; a method's own pictures are written by sampling."""
    return next((job.name for job in JOBS.values() if name in (*job.leaves, *job.writes)), "sample")


def files() -> set[str]:
    """All files of the work directory that jobs write."""
    return {name for job in JOBS.values() for name in (*job.leaves, *job.writes) if not name.endswith("/")}

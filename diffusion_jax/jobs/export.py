"""A finished or running experiment as a network and its parameters, for the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusion_jax import config
from diffusion_jax.config import saved
from diffusion_jax.diffusion.process import DiscreteProcess
from diffusion_jax.hub.sources import Run
from diffusion_jax.jobs.session import Session

PREDICTIONS = {"epsilon": "epsilon", "sample": "sample", "v": "v_prediction"}


def open_run(workdir: Path) -> Run:
    """The network and averaged parameters of the newest checkpoint of the run in a work directory.

    The data is asked for its number of classes if the run is class-conditional; the mesh is the one of this machine.

    Raises:
      ValueError: in one line: config.json cannot be read, or there is no checkpoint, or the data is not there.
    """
    settings = saved.read(workdir)
    settings.mesh = config.default().mesh
    session = Session(settings, workdir)
    _, params = session.parameters
    model: Any = session.model
    scheduler, without = _scheduler(session)
    num_classes = getattr(model, "num_classes", None)
    null_class = num_classes if getattr(model, "label_dropout", 0) else None
    return Run(model.network, params, model.image_shape, num_classes, null_class, scheduler, without)


def _scheduler(session: Session) -> tuple[dict[str, Any] | None, str]:
    """A scheduler config of diffusers for what a run trained; None, and why, where diffusers has none."""
    model, sampling = session.model, session.config.sampling
    objective: Any = getattr(model, "objective", None)
    process = getattr(objective, "process", None)
    if process is None:
        return None, "it trains no network that draws by steps of noise"
    if session.decoder is not None:
        return None, "it draws latents, whose autoencoder is not a part of it"
    if not isinstance(process, DiscreteProcess) or objective.prediction not in PREDICTIONS:
        return None, "its process and prediction have no scheduler in diffusers"
    if objective.learned_variance:
        return None, "its network learns variances, too"
    name = "DDPMScheduler" if sampling.name == "ddpm" else "DDIMScheduler"
    clip = getattr(model.sampler, "clip", None)  # of estimates on the way; pipelines clip the images anyway
    scheduler: dict[str, Any] = {
        "_class_name": name,
        "num_train_timesteps": process.num_timesteps,
        "trained_betas": process.betas.tolist(),
        "prediction_type": PREDICTIONS[objective.prediction],
        "clip_sample": clip is not None,
        "clip_sample_range": 1.0 if clip is None else clip,
        "timestep_spacing": "trailing",
    }
    own = {"variance_type": "fixed_small"} if name == "DDPMScheduler" else {"set_alpha_to_one": True}
    return scheduler | own, ""

"""Every metric stands here by the name that it is asked for by: commands, configs and training read this table."""

from diffusion_jax.metrics.by_image import CMMD, DENSITY_COVERAGE, KID, PRECISION_RECALL
from diffusion_jax.metrics.frechet import FID, FID_INFINITY, SFID
from diffusion_jax.metrics.metric import Metric
from diffusion_jax.metrics.of_logits import INCEPTION_SCORE

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        FID,
        SFID,
        FID_INFINITY,
        INCEPTION_SCORE,
        KID,
        PRECISION_RECALL,
        DENSITY_COVERAGE,
        CMMD,
    )
}
# What the command computes where it is not told: what the reference and the features allow of these.
DEFAULT_METRICS: tuple[str, ...] = ("fid", "kid", "prc")
DEFAULT_WITHOUT_REFERENCE: tuple[str, ...] = ("is",)

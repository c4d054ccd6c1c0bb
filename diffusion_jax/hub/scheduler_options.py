"""The options of diffusers' schedulers, with the defaults of their class for those that a file leaves out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusion_jax.readers import few

_PREDICTIONS = {"epsilon": "epsilon", "sample": "sample", "v_prediction": "v", "flow_prediction": "velocity"}
# What the schedulers that are read are configured by.
_OPTIONS = """
algorithm_type base_image_seq_len base_shift beta_end beta_schedule beta_start clip_sample clip_sample_range
disable_corrector dynamic_thresholding_ratio euler_at_final final_sigmas_type flow_shift interpolation_type
invert_sigmas lambda_min_clipped lower_order_final max_image_seq_len max_shift num_train_timesteps
original_inference_steps predict_x0 prediction_type rescale_betas_zero_snr rho sample_max_value set_alpha_to_one
shift shift_terminal sigma_data sigma_max sigma_min sigma_schedule skip_prk_steps solver_order solver_p solver_type
steps_offset stochastic_sampling thresholding time_shift_type timestep_scaling timestep_spacing timestep_type
trained_betas use_beta_sigmas use_dynamic_shifting use_exponential_sigmas use_flow_sigmas use_karras_sigmas
use_lu_lambdas variance_type
"""
MOST_TIMESTEPS = 100_000  # a hundred times those of published chains; tables have an entry for each
KNOWN_OPTIONS = frozenset(_OPTIONS.split())


class Options:
    """A scheduler's config: its options, with the defaults of its class for those that the file leaves out."""

    def __init__(self, config: Mapping[str, Any], first_step: int = 0, mu: float | None = None):
        self.name, self.first_step, self.mu = config["_class_name"], first_step, mu
        self._given = {key: value for key, value in config.items() if not key.startswith("_")}
        unknown = sorted(set(self._given) - KNOWN_OPTIONS)
        if unknown:
            raise ValueError(f"{self.name}: unknown options {few(unknown)}")
        timesteps = self.get("num_train_timesteps", 1000)
        if isinstance(timesteps, int | float) and not timesteps <= MOST_TIMESTEPS:
            raise ValueError(
                f"{self.name}: num_train_timesteps is {timesteps!r:.30}; it can be up to {MOST_TIMESTEPS:,}"
            )

    def get(self, option: str, default: Any) -> Any:
        value = self._given.get(option)
        return default if value is None else value

    def choose(self, option: str, default: Any, choices: Mapping[Any, Any] | tuple[Any, ...]) -> Any:
        """The option's value, one of so many, or what the value stands for."""
        value = self.get(option, default)
        if value not in choices:
            raise ValueError(f"{self.name}: {option} is {value!r}; it can be {', '.join(map(str, choices))}")
        return choices[value] if isinstance(choices, Mapping) else value

    def refuse(self, **only: Any) -> None:
        """Options that are supported at one value."""
        for option, value in only.items():
            got = self.get(option, value)
            if got != value:
                raise ValueError(f"{self.name}: {option} is {got!r}; only {value!r} is supported")

    def has_variance_channels(self) -> bool:
        """Whether half of the network's output is a variance, which DPM-Solver leaves alone. Fixed ones do not matter.

        Raises ValueError where diffusers does not take them off, as with any prediction but of the noise.
        """
        learned = self.get("variance_type", None) in ("learned", "learned_range")
        if learned and self.prediction != "epsilon":
            raise ValueError(f"{self.name}: variance_type is a learned one, which needs prediction_type 'epsilon'")
        return learned

    def clip(self, default: bool) -> float | None:
        """What estimates of x_0 are clipped to; default: of clip_sample in this class."""
        return self.get("clip_sample_range", 1.0) if self.get("clip_sample", default) else None

    @property
    def threshold(self) -> tuple[float, float] | None:
        """See `Sampler.threshold`."""
        if not self.get("thresholding", False):
            return None
        return self.get("dynamic_thresholding_ratio", 0.995), self.get("sample_max_value", 1.0)

    @property
    def prediction(self) -> str:
        return self.choose("prediction_type", "epsilon", _PREDICTIONS)

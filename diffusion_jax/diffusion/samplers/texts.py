"""What the options of the samplers mean, for those that several have."""

NUM_STEPS = {"num_steps": "steps of the sampler"}
CLIP = {"clip": "magnitude to which estimates of the image are clipped, 1 for images in [-1, 1]; None: never"}
OFFSET = {"offset": "added to every timestep"}
# Of chains.
TIMESTEPS = {
    **NUM_STEPS,
    "spacing_rule": "how timesteps are chosen: leading, trailing, linspace, quadratic, even or strided",
    **OFFSET,
}
RESPACING = {
    "respacing": "OpenAI's way to choose timesteps instead, such as 250, ddim50 or 10,10,20; None: by spacing_rule"
}
# Of `grid.Points`.
GRID = {
    **NUM_STEPS,
    "spacing_rule": (
        "how noise levels are chosen: karras, exponential, log_snr, beta, or timesteps as leading, trailing, linspace; "
        "None: as suits the process"
    ),
    **OFFSET,
    "rho": "of spacing_rule karras: the higher, the more steps at little noise",
    "sigma_min": "smallest noise level; None: the process's",
    "sigma_max": "largest noise level; None: the process's",
    "denoise_to_zero": "a last step to no noise at all",
    **CLIP,
}
ORDER = {"order": "earlier estimates that a step looks back at"}
LOWER_ORDER = {"lower_order_final": "the order falls to 1 at the end, which few steps need"}
CHURN = {
    "s_churn": "noise that is added anew, over all steps; 0 is deterministic",
    "s_min": "smallest noise level at which noise is added",
    "s_max": "largest noise level at which noise is added",
    "s_noise": "inflation of the added noise",
}

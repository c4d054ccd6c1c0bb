"""Values that no field can have are refused before anything is compiled, whatever they would be used for."""

import math
import typing

import pytest

from configs import digits
from diffusion_jax import config as experiment
from diffusion_jax.config import build
from diffusion_jax.diffusion import process


def refused(**fields):
    """The message about the digits config with dotted fields changed, written with two underscores for the dot."""
    config = digits.get_config()
    with pytest.raises(experiment.ConfigError) as raised:
        for path, value in fields.items():
            section, _, name = path.rpartition("__")
            (config[section] if section else config)[name] = value
        experiment.check(config, 1)
        build.model(config)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def numbers():
    """(choices to be made, path) of every field that is a number, of every variant of every section."""
    for section_name, section in experiment.default().sections():
        for choice in section.variants.constructors:
            for field, option in section.variants.options(choice).items():
                if float in (option.kind, *typing.get_args(option.kind)):
                    yield {} if not choice else {f"{section_name}__{section.variants.key}": choice}, section_name, field


def test_a_nan_is_refused_in_every_field():
    fields = list(numbers())
    assert len({(section, field) for _, section, field in fields}) > 60
    for choice, section, field in fields:
        config = experiment.default()
        config.method.name = choice.get("method__name", "diffusion")
        if section in config:
            for path, value in choice.items():
                config[section][path.rpartition("__")[2]] = value
            is_tuple = isinstance(config[section][field], tuple)
            config[section][field] = (math.nan,) if is_tuple else math.nan
            with pytest.raises(
                experiment.ConfigError, match=rf"config.{section}.{field} is \(?nan,?\)?; it must be finite"
            ):
                experiment.check(config, 1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"optimizer__learning_rate": math.inf}, "config.optimizer.learning_rate is inf; it must be finite"),
        ({"sampling__guidance_scale": math.inf}, "config.sampling.guidance_scale is inf"),
        (
            {"posthoc_ema__sigma_rels": (0.1, "a")},
            "config.posthoc_ema.sigma_rels is (0.1, 'a'), of type tuple; it must be of type tuple of float",
        ),
        (
            {"evaluation__metrics": (3,)},
            "config.evaluation.metrics is (3,), of type tuple; it must be of type tuple of str",
        ),
        ({"seed": -1}, "config.seed is -1; it must be from 0 to 4294967295"),
        ({"seed": 2**32}, "config.seed is 4294967296"),
        ({"name": "a/b"}, "config.name is 'a/b'"),
        ({"data__num_workers": -1}, "config.data.num_workers is -1; it must be 0 or more"),
        ({"sampling__eta": -1.0}, "config.sampling.eta is -1.0; it must be 0 or more"),
        ({"sampling__clip": -1.0}, "config.sampling.clip is -1.0; it must be above 0"),
        (
            {"sampling__guidance_channels": 5},
            "config.sampling.guidance_channels is 5, but config.data.channels is 1",
        ),
        ({"sampling__ema_width": 0.1}, "config.sampling.ema_width is 0.1, which is put together from snapshots"),
        ({"sampling__ema_width": -1.0}, "config.sampling.ema_width is -1.0; it must be above 0"),
        (
            {"sampling__guide": "run", "sampling__guide_ema_width": 0.9},
            "config.sampling.guide_ema_width is 0.9; it must be above 0 and at most 0.2887",
        ),
        ({"posthoc_ema__snapshot_every": 0}, "config.posthoc_ema.snapshot_every is 0"),
        ({"evaluation__num_images": 1}, "config.evaluation.num_images is 1; it must be 2 or more"),
        ({"evaluation__every": -5}, "config.evaluation.every is -5"),
        ({"evaluation__features": "foo"}, "config.evaluation.features 'foo' is unknown"),
        ({"evaluation__metrics": (), "evaluation__every": 5}, "config.evaluation.metrics is empty"),
        ({"evaluation__metrics": ("foo",), "evaluation__every": 5}, "config.evaluation: metric 'foo' is unknown"),
        ({"evaluation__protocol": "foo"}, "config.evaluation.protocol 'foo' is unknown"),
        ({"evaluation__reference": "/nonexistent"}, "config.evaluation.reference is '/nonexistent'; there is no such"),
        ({"evaluation__weights": "/nonexistent"}, "config.evaluation.weights is '/nonexistent'; there is no such file"),
        ({"evaluation__sweep_samplers": ("foo",)}, "config.evaluation.sweep_samplers has 'foo'"),
        ({"evaluation__sweep_steps": (5, 0)}, "config.evaluation.sweep_steps has 0"),
        ({"weighting__name": "min_snr", "weighting__gamma": -1.0}, "config.weighting.gamma is -1.0; it must be above"),
        ({"weighting__name": "edm", "weighting__sigma_data": 0.0}, "config.weighting.sigma_data is 0.0"),
        ({"process__name": "edm", "process__log_std": 0.0}, "config.process.log_std is 0; it must be 0 < log_std"),
        (
            {"process__name": "edm", "method__prediction": "edm"},
            "config.sampling.name 'ddim' needs a discrete process, but config.process.name is 'edm'",
        ),
        ({"method__prediction": "edm"}, "config.sampling.name 'ddim' does not know config.method.prediction 'edm'"),
    ],
)
def test_what_is_out_of_range_is_named(fields, message):
    assert refused(**fields).startswith(message)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (process.VPSDE, {"beta_max": 0.05}),
        (process.SubVPSDE, {"t_min": 1.0}),
        (process.VPSDE, {"t_stop": 0.0}),
        (process.VESDE, {"sigma_min": 60.0}),
        (process.VESDE, {"time_scale": -1.0}),
        (process.EDM, {"sigma_max": 0.001}),
        (process.RectifiedFlow, {"shift": 0.0}),
        (process.RectifiedFlow, {"logit_std": -1.0}),
        (process.RectifiedFlow, {"t_stop": 1.0}),
    ],
)
def test_processes_that_cannot_be(kind, fields):
    ((name, value),) = fields.items()
    with pytest.raises(ValueError, match=rf"{name} is {value:g}"):
        kind(**fields)

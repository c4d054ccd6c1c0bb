"""A config that cannot be is refused before anything is compiled, in one line that names the field."""

import jax
import optax
import pytest

from configs import digits, digits_classifier
from diffusion_jax import config as experiment
from diffusion_jax.config import build
from diffusion_jax.diffusion import samplers
from diffusion_jax.options import options


def changed(**fields):
    """The digits config with dotted fields changed, written with two underscores for the dot, and sections (a dict)."""
    config = digits.get_config()
    for path, value in fields.items():
        section, _, field = path.rpartition("__")
        if section:
            config[section][field] = value
        else:
            config[field] = value
    return config


def build_all(config, num_devices=1):
    experiment.check(config, num_devices)
    return build.model(config)


def test_the_default_and_the_digits_config_are_accepted():
    experiment.check(experiment.default(), 1)
    method = build_all(digits.get_config())
    assert method.num_classes == 10 and method.image_shape == (8, 8, 1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"training__batch_sise": 3},
            r"config.training field 'batch_sise' does not exist; did you mean 'batch_size'\?",
        ),
        ({"trainin": 3}, r"config field 'trainin' does not exist; did you mean 'training'\?"),
        ({"training__batch_size": "many"}, "config.training.batch_size is 'many', of type str; it must be of type int"),
        ({"training__batch_size": True}, "config.training.batch_size is True, of type bool"),
        ({"training": 3}, "config.training is 3; it is a section with"),
        ({"training__num_steps": 0}, "config.training.num_steps is 0; it must be 1 or more"),
        ({"training__num_steps": None}, "config.training.num_steps is None"),
        ({"process__num_timesteps": 0}, "config.process.num_timesteps is 0; it must be 1 or more"),
        ({"process__name": "cosin"}, r"config.process.name 'cosin' does not exist; did you mean 'cosine'\?"),
        ({"process__beta_start": 0.1}, "config.process.beta_start is 0.1, but 'cosine' does not take it; it takes"),
        (
            {"method__prediction": "eps"},
            "config.method.prediction is 'eps'; it can be epsilon, .*; did you mean",
        ),
        ({"method__label_dropout": 1.5}, "config.method.label_dropout is 1.5; it must be from 0 to 1"),
        ({"method__label_dropout": 0.0}, "config.sampling.guidance_scale is 1.25, which needs a network that has seen"),
        ({"sampling__name": "ddpm", "sampling__variance": "learned_range"}, "config.method.bound is 'none'"),
        ({"training__accumulation_steps": 3}, "config.training.batch_size is 128; it must be a multiple of 3"),
        ({"sampling__num_steps": 2000}, "config.sampling.num_steps is 2000; it can be 1 to 1000"),
        ({"sampling__spacing_rule": "leding"}, "config.sampling.spacing_rule is 'leding'; it can be leading"),
        ({"sampling__name": "sde"}, "config.sampling: the sde sampler needs a process"),
        ({"data__image_size": 9}, "config.data.image_size must be 8 or a multiple"),
        ({"data__name": "digit"}, "config.data: .*digits"),
        ({"model__width": 7}, "config.model: width=7"),
        ({"optimizer__name": "adm"}, "config.optimizer.name 'adm' does not exist; did you mean 'adam'"),
        ({"optimizer__learning_rate": -1.0}, "config.optimizer.learning_rate is -1.0"),
        ({"ema__kind": "ddmp"}, "config.ema.kind 'ddmp' does not exist; did you mean 'ddpm'"),
    ],
)
def test_a_bad_field_is_named(fields, message):
    with pytest.raises(experiment.ConfigError, match=message) as raised:
        build_all(changed(**fields))
    assert "\n" not in str(raised.value)


def test_a_resolution_that_the_levels_do_not_divide():
    config = changed(model={"name": "unet", "channels": 32, "channel_mults": (1, 1, 1, 1, 1)})
    with pytest.raises(experiment.ConfigError, match=r"config.model: .*8.*multiple of 16"):
        build_all(config)


def test_batch_must_divide_by_the_devices():
    with pytest.raises(experiment.ConfigError, match=r"must be a multiple of 24 .24 devices x 1 accumulation"):
        experiment.check(digits.get_config(), 24)
    with pytest.raises(experiment.ConfigError, match=r"config.sampling.batch_size is 30"):
        experiment.check(changed(sampling__batch_size=30), 8)


def test_no_field_can_be_taken_away():
    config = digits.get_config()
    with pytest.raises(experiment.ConfigError, match=r"config.training.num_steps cannot be deleted"):
        del config.training["num_steps"]
    with pytest.raises(experiment.ConfigError, match=r"config.training cannot be deleted"):
        del config["training"]


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("training.batchsize=3", "did you mean 'batch_size'"),
        ("trainig.batch_size=3", "config field 'trainig' does not exist; did you mean 'training'"),
        ("training.batch_size=x", "config.training.batch_size is 'x'; it must be of type int"),
        ("training.batch_size=None", "config.training.batch_size is 'None'; it must be of type int"),
        ("data.name=None", "config.data.name is 'None'; it must be of type str"),
        ("data.flip=maybe", "config.data.flip is 'maybe'; it must be of type bool"),
        ("training=3", "config.training is '3'; it is a section with"),
        ("training.batch_size", "--config.training.batch_size has no value; write --config.training.batch_size=VALUE"),
        (
            "latents.std=1",
            "config.latents is no section of config.method.name 'diffusion'; it is one of latent_diffusion",
        ),
        ("sampling.sigma_min=1", "config.sampling.sigma_min is '1', but 'ddim' does not take it; it takes num_steps, "),
    ],
)
def test_a_bad_assignment_is_one_line(assignment, message):
    with pytest.raises(experiment.ConfigError) as raised:
        experiment.override(digits.get_config(), [f"--config.{assignment}"])
    assert message in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("training.batch_size=32", 32),
        ("data.flip", True),
        ("data.flip=false", False),
        ("optimizer.clip_norm=None", None),
        ("optimizer.learning_rate=3e-4", 3e-4),
        ("data.path=None", None),
        ("evaluation.sweep_samplers=ddim,dpmpp", ("ddim", "dpmpp")),
        ("evaluation.sweep_steps=(10,)", (10,)),
        ("evaluation.sweep_steps=", ()),
        ("evaluation.sweep_guidance=1,1.5", (1, 1.5)),
    ],
)
def test_an_assignment(assignment, value):
    config = digits.get_config()
    experiment.override(config, [f"--config.{assignment}"])
    section, _, field = assignment.partition("=")[0].partition(".")
    assert config[section][field] == value


ORDERS = [["sampling.name=edm", "sampling.s_churn=40"], ["sampling.s_churn=40", "sampling.name=edm"]]


@pytest.mark.parametrize("assignments", ORDERS)
def test_another_name_brings_its_own_fields_whatever_the_order(assignments):
    config = digits.get_config()
    experiment.override(config, [f"--config.{assignment}" for assignment in assignments])
    section = config.sampling
    assert (section.s_churn, section.rho, section.s_max) == (40.0, 7.0, float("inf"))  # set, and by the constructor
    assert (section.num_steps, section.guidance_scale) == (50, 1.25)  # kept, as digits sets them
    assert "spacing_rule" not in section and "eta" not in section


def test_what_is_not_set_has_the_default_of_the_constructor():
    config = experiment.default()
    assert config.sampling.num_steps == 50
    config.sampling.name = "edm"
    assert config.sampling.num_steps == 18
    config.sampling.name = "ddpm"
    assert (config.sampling.num_steps, config.sampling.clip) == (None, 1.0)
    config.sampling.clip = None
    config.sampling.name = "ddim"
    config.sampling.name = "ddpm"
    assert config.sampling.clip is None  # a value like any other


def test_a_unet_for_the_digits():
    config = digits.get_config()
    experiment.override(config, ["--config.model.name=unet"])
    network = build_all(config).network
    assert type(network).__name__ == "UNet" and (network.channels, network.dropout) == (128, 0.1)
    assert network.attention_resolutions == ()  # by default at 16 pixels, which the digits do not have
    config.model.attention_resolutions = (16,)
    with pytest.raises(experiment.ConfigError, match=r"config.model: attention_resolutions=\(16,\): no level has"):
        build_all(config)


def test_every_option_of_every_constructor_is_a_field_of_its_own_section():
    config = experiment.default()
    for name, constructor in samplers.SAMPLERS.items():
        config.sampling.name = name
        own = set(options(constructor, ("process", "prediction")))
        others = {option for other in samplers.SAMPLERS.values() for option in options(other)}
        assert own <= set(config.sampling) and not (others - own - {"name"}) & set(config.sampling)


def test_a_copy_is_apart():
    config = digits.get_config()
    copy = config.copy_and_resolve_references()
    copy.method.name = "classifier"
    copy.training.num_steps = 1
    assert config.method.name == "diffusion" and "weighting" in config and config.training.num_steps == 3000
    assert "weighting" not in copy and copy.model.name == "unet_classifier"


def test_image_keys_are_functions_of_seed_and_index():
    config = digits.get_config()
    some = jax.random.key_data(build.image_keys(config, jax.numpy.array([5, 2])))
    more = jax.random.key_data(build.image_keys(config, jax.numpy.arange(8)))
    assert (some == more[jax.numpy.array([5, 2])]).all()
    config.seed = 1
    other = jax.random.key_data(build.image_keys(config, jax.numpy.arange(8)))
    assert (other != more).any()
    config.sampling.seed = 0  # a trained run sampled with another seed than it was trained with
    assert (jax.random.key_data(build.image_keys(config, jax.numpy.arange(8))) == more).all()
    config.sampling.seed = 2**32  # not that of 0
    experiment.check(config, 1)
    assert (jax.random.key_data(build.image_keys(config, jax.numpy.arange(8))) != more).any()
    config.sampling.seed = 2**64
    with pytest.raises(experiment.ConfigError, match=r"config.sampling.seed is .*from 0 to 2\^64 - 1"):
        experiment.check(config, 1)


EDM = {
    "model": {
        "name": "edm_unet",
        "family": "song",
        "channels": 8,
        "num_res_blocks": 1,
        "channel_mults": (1,),
        "attention_resolutions": (),
    },
    "process": {"name": "edm"},
    "method__prediction": "edm",
    "sampling": {"name": "edm", "num_steps": 2, "guidance_scale": 1.0},
}


def test_the_time_sampler_is_that_of_the_config():
    method = build_all(changed(time_sampler={"name": "loss_second_moment", "history": 3}, process={"name": "cosine"}))
    assert method.objective.time_sampler.history == 3
    assert method.objective.time_sampler.num_timesteps == method.objective.process.num_timesteps
    assert build_all(digits.get_config()).objective.time_sampler is None


def test_the_augmentation_is_that_of_the_config():
    edm = dict(EDM, model=dict(EDM["model"], augment_dim=9))
    method = build_all(changed(**edm, augmentation__probability=0.12, augmentation__scale=0.5))
    assert (method.augmentation.probability, method.augmentation.scale) == (0.12, 0.5)
    assert build_all(changed(**edm)).augmentation is None


def test_the_coupling_is_that_of_the_config():
    assert build_all(changed(method__coupling="optimal_transport")).coupling == "optimal_transport"


EDM2 = {
    "name": "edm2_unet",
    "channels": 8,
    "num_res_blocks": 1,
    "channel_mults": (1,),
    "head_channels": 8,
    "attention_resolutions": (),
}


def test_edm2_learns_its_weighting_and_stays_on_the_sphere():
    # An update so large that weights which are not brought back leave the sphere.
    large = {"optimizer__learning_rate": 0.5, "optimizer__warmup_steps": 0}
    config = changed(**dict(EDM, model=EDM2), method__adaptive_weighting=True, **large)
    method = build_all(config)
    assert method.adaptive_weighting
    batch = {
        "image": jax.numpy.zeros((2, 8, 8, 1)),
        "condition": {"label": jax.numpy.zeros(2, "int32")},
        "position": jax.numpy.arange(2),
    }
    params = method.init(jax.random.key(0), batch)
    loss, _ = method.loss(params, batch, jax.random.key(1), 0)
    plain, _ = build_all(changed(**dict(EDM, model=EDM2))).loss(params, batch, jax.random.key(1), 0)
    assert loss != plain

    optimizer, _, _ = build.optimization(config)
    grads = jax.tree.map(lambda p: jax.random.normal(jax.random.key(2), p.shape), params)
    state = optimizer.init(params)
    updates, state = optimizer.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    kernel = params["out_conv"]["kernel"]
    magnitude = jax.numpy.sqrt((kernel**2).mean((0, 1, 2)))
    assert abs(magnitude - 1).max() < 1e-3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"time_sampler": {"name": "loss_second_moment"}, **EDM},
            "config.time_sampler: 'loss_second_moment' needs a disc",
        ),
        ({"time_sampler__history": 3}, "config.time_sampler.history is 3, but 'process' does not take it"),
        (
            {"augmentation__probability": 0.1},
            "config.augmentation.probability is 0.1, which needs a network that is told",
        ),
        ({"augmentation__probability": 1.5}, "config.augmentation.probability is 1.5; it must be from 0 to 1"),
        (
            {"method__coupling": "optimal"},
            "config.method.coupling is 'optimal'; it can be independent, optimal_transport",
        ),
        (
            {"method__adaptive_weighting": True},
            "config.method.adaptive_weighting is True, but 'mlp' learns no weighting",
        ),
        ({"sampling__guidance_interval": (3.0, 1.0)}, r"config.sampling.guidance_interval is \(3.0, 1.0\)"),
        ({"sampling__guidance_rescale": 2.0}, "config.sampling.guidance_rescale is 2.0; it must be from 0 to 1"),
        (
            {"sampling__guidance_scale": 1.0, "sampling__guidance_rescale": 0.5},
            "config.sampling.guidance_rescale is 0.5, but config.sampling.guidance_scale is 1, which is no guidance",
        ),
        ({"sampling__guide": "/nowhere"}, "config.sampling.guide '/nowhere' is no work directory of a run"),
        ({"sampling__guide_step": 5}, "config.sampling.guide_step is 5, which is of a guide"),
        (
            {"sampling__guide": "x", "sampling__guide_step": 5},
            "config.sampling.guide_step is 5, one of the guide's EMA",
        ),
        ({"posthoc_ema__sigma_rels": (0.5,)}, "config.posthoc_ema.sigma_rels is 0.5; it must be above 0"),
    ],
)
def test_a_wrong_combination_is_one_line(fields, message):
    with pytest.raises(experiment.ConfigError, match=message) as raised:
        config = changed(**fields)
        build_all(config)
        build.posthoc_ema(config)
    assert "\n" not in str(raised.value)


def test_a_guide_of_another_prediction_is_refused(tmp_path):
    config = changed(sampling__guide=str(tmp_path))
    (tmp_path / "config.json").write_text(digits.get_config().to_json_best_effort())
    assert build_all(config).guidance.guide is not None
    other = digits.get_config()
    other.method.prediction = "epsilon"
    (tmp_path / "config.json").write_text(other.to_json_best_effort())
    with pytest.raises(experiment.ConfigError, match="'epsilon', but here it is 'v'"):
        build_all(config)
    for content in ("[1]", '{"method": "diffusion"}'):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(
            experiment.ConfigError, match=r"is no work directory of a run: .*(no config of a run|hold a JSON)"
        ):
            build_all(config)


def test_a_classifier_that_has_not_been_trained_is_refused(tmp_path):
    """And not only when samples are drawn, after all of the training."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text(digits_classifier.get_config().to_json_best_effort())
    config = changed(sampling__classifier=str(tmp_path))
    with pytest.raises(experiment.ConfigError, match="has no checkpoint; train it first"):
        build_all(config)
    (tmp_path / "checkpoints" / "5").mkdir()
    assert build_all(config).guidance.classifier is not None


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("sampling", "guidance_scale", 3.0),
        ("evaluation", "sweep_steps", (5,)),
        ("evaluation", "keep_best", "fid"),
        ("evaluation", "patience", 2),
    ],
)
def test_what_a_classifier_would_ignore_is_refused(section, field, value):
    config = digits_classifier.get_config()
    experiment.check(config, 1)
    with pytest.raises(experiment.ConfigError, match=f"config.{section} field '{field}' does not exist"):
        config[section][field] = value

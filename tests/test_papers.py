"""Every config of configs/papers: it is the paper's network, and it runs end to end in miniature."""

import functools
import importlib
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import config as experiment
from diffusion_jax.config import build
from diffusion_jax.diffusion import samplers
from diffusion_jax.jobs import run, table
from diffusion_jax.training import sharding
from tests.models.networks import CONSTANTS

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "configs" / "papers").glob("*.py"))

# Trained parameters, counted in the papers' released code to as many digits as are printed here, and the network
# evaluations of one image. None: the solver chooses, or nothing is drawn.
PAPERS = {
    "ddpm_cifar10": ("35,746,307", 1000),
    "ddpm_celebahq256": ("113,673,219", 1000),
    "ddpm_lsun_bedroom": ("113,673,219", 1000),
    "ddpm_lsun_cat": ("113,673,219", 1000),
    "ddpm_lsun_church": ("113,673,219", 1000),
    "ddim_cifar10": ("35,746,307", 100),
    "ddim_celeba64": ("78,700,803", 100),
    "iddpm_cifar10": ("52,546,438", 4000),
    "iddpm_cifar10_vlb": ("52,546,438", 4000),
    "iddpm_imagenet64": ("121,063,942", 4000),
    "iddpm_imagenet64_cond": ("273.0 M", 250),
    "adm_imagenet64": ("295.9 M", 250),
    "adm_imagenet128": ("421.5 M", 250),
    "adm_imagenet256": ("553.8 M", 250),
    "adm_classifier_imagenet64": ("65.4 M", None),
    "adm_classifier_imagenet128": ("42.6 M", None),
    "adm_classifier_imagenet256": ("54.1 M", None),
    "cfg_imagenet64": ("295.9 M", 256),
    "edm_cifar10_uncond_vp": ("55,733,891", 35),
    "edm_cifar10_uncond_ve": ("56,397,827", 35),
    "edm_cifar10_cond_vp": ("55,735,299", 35),
    "edm_cifar10_cond_ve": ("56,400,643", 35),
    "edm_ffhq64": ("61.81 M", 79),
    "edm_afhqv2_64": ("61.81 M", 79),
    "edm_imagenet64": ("295,899,267", 511),
    "edm2_imagenet512:xs": ("124.7 M", 63),
    "edm2_imagenet512:s": ("280.2 M", 63),
    "edm2_imagenet512:m": ("497.8 M", 63),
    "edm2_imagenet512:l": ("777.5 M", 63),
    "edm2_imagenet512:xl": ("1119.3 M", 63),
    "edm2_imagenet512:xxl": ("1523.2 M", 63),
    "dit_imagenet256:s2": ("32.87 M", 250),
    "dit_imagenet256:b2": ("130.3 M", 250),
    "dit_imagenet256:l2": ("457.8 M", 250),
    "dit_imagenet256:xl2": ("674.8 M", 250),
    "sit_imagenet256:s2": ("32.86 M", 250),
    "sit_imagenet256:b2": ("130.3 M", 250),
    "sit_imagenet256:l2": ("457.8 M", 250),
    "sit_imagenet256:xl2": ("674.8 M", 250),
    "otcfm_cifar10": ("35,746,307", None),
    "rectified_flow_cifar10": ("61.80 M", None),
}
# How the papers' released code brings samples to 8 bits, and the words for it in the docstrings.
QUANTISATION = {
    "ddpm": "none",  # diffusion_tf/tpu_utils/tpu_utils.py: (clipped + 1) * 127.5 goes to Inception
    "ddim": "half_up",  # runners/diffusion.py: torchvision's save_image
    "iddpm": "floor",  # scripts/image_sample.py: ((x + 1) * 127.5).clamp(0, 255).to(uint8)
    "adm": "floor",  # the same
    "cfg": "half_up",  # not published
    "edm": "half_up",  # generate.py: (x * 127.5 + 128).clip(0, 255).to(uint8)
    "edm2": "floor",  # training/encoders.py: of pixels in [0, 1], clamp(0, 1).mul(255).to(uint8)
    "dit": "half_up",  # sample_ddp.py: clamp(127.5 * x + 128, 0, 255)
    "sit": "half_up",  # the same
    "otcfm": "half_up",  # examples/images/cifar10/compute_fid.py: (x * 127.5 + 128).clip(0, 255)
    "rectified": "floor",  # ImageGeneration/run_lib.py: clip(255 x, 0, 255).astype(uint8), of x in [0, 1]
}
WORDS = {"half_up": "rounded to 8 bits", "floor": "truncated to 8 bits", "none": "clipped and not quantised"}
CLASSES = {"tfds:cifar10": 10, "tfds:imagenet2012": 1000, "latents": 1000}
# Behind a colon is the argument of get_config; files with one are run in miniature at one size.
NAMES = list(PAPERS)
STEMS = {path.stem for path in FILES}
RUNS = [name for name in NAMES if ":" not in name or name.endswith((":s", ":xl2"))]

# The longest way, on latents, and the two kinds of U-Net; each takes 10 to 40 s, so the others are slow tests.
DEFAULT_RUNS = ("dit_imagenet256:xl2", "iddpm_cifar10", "edm_cifar10_uncond_vp")
# What a quick run may change. Everything else is the experiment.
SIZES = {
    *("name", "data.name", "data.path", "data.image_size"),
    *("model.channels", "model.channel_mults", "model.num_res_blocks", "model.attention_resolutions"),
    *("model.num_heads", "model.head_channels", "model.norm_groups", "model.width", "model.depth"),
    *("latents.mean", "latents.std", "latents.unit_range", "posthoc_ema.snapshot_every"),
    *("optimizer.warmup_steps", "optimizer.warmup_images"),
    *("training.batch_size", "training.num_steps", "training.log_every", "training.checkpoint_every"),
    *("sampling.num_steps", "sampling.num_images", "sampling.batch_size", "sampling.num_frames"),
    *("evaluation.num_images", "evaluation.max_reference_images", "evaluation.classifier_steps"),
    "evaluation.scored_images",
}


def load(name: str):
    return importlib.import_module(f"configs.papers.{name.partition(':')[0]}")


def whole(name: str):
    argument = name.partition(":")[2]
    return load(name).get_config(*([argument] if argument else []))


def quick(name: str):
    config = whole(name)
    config.quick = True
    return config


def printed(count: int, like: str) -> str:
    """The count with as many digits as `like` has."""
    if not like.endswith(" M"):
        return f"{count:,}"
    decimals = len(like.removesuffix(" M").partition(".")[2])
    return f"{count / 1e6:.{decimals}f} M"


def test_every_file_is_in_the_table():
    assert {name.partition(":")[0] for name in NAMES} == STEMS


def test_the_readme_lists_them_all():
    rows = [line.split("`")[1] for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| `")]
    assert [name.replace(":", ".py:") for name in NAMES] == [row for row in rows if row.split(".py")[0] in STEMS]


@pytest.mark.parametrize("name", NAMES)
def test_the_whole_config_is_the_papers_network(name):
    module, config = load(name), whole(name)
    assert config.name == name.replace(":", "_")
    experiment.check(config, num_devices=1)
    build.optimization(config)
    method = build.model(config, build.of_classes(CLASSES.get(config.data.name)))
    size, channels = config.data.image_size, config.data.channels
    batch = {
        "image": jax.ShapeDtypeStruct((2, size, size, channels), np.float32),
        "label": jax.ShapeDtypeStruct((2,), np.int32),
        "position": jax.ShapeDtypeStruct((2,), np.int32),
    }
    shapes = jax.eval_shape(method.init, jax.random.key(0), batch)
    trained = [
        np.prod(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
        if path[-1].key not in CONSTANTS
    ]
    parameters, evaluations = PAPERS[name]
    assert printed(int(sum(trained)), like=parameters) == parameters
    assert f" {parameters} parameters" in module.__doc__.replace("\n", " ")
    if evaluations is not None:
        assert method.sampler.num_evaluations == evaluations


@pytest.mark.parametrize("name", ["dit_imagenet256:s2", "sit_imagenet256:s2", "edm2_imagenet512:xs"])
def test_a_latent_of_two_and_a_half_survives_the_sampler(name):
    """Latents have no limits; a network that is sure of one has to be believed."""
    config = whole(name)
    config.sampling.num_steps, wanted = 4, 2.5
    model = build.model(config, build.of_classes(1000))
    sampler, channels = model.sampler, config.data.channels
    table = sampler.table

    def predict(x, t):
        """What the network has to give for the estimate to be `wanted` at the row with this time."""
        row = jnp.argmin(jnp.abs(jnp.asarray(table.timestep) - t.ravel()[0]))
        on_x, on_output = jnp.asarray(table.denoise)[row]
        output = (wanted - on_x / jnp.asarray(table.input_scale)[row] * x) / on_output
        return jnp.concatenate([output, jnp.zeros_like(output)], -1) if sampler.learned_variance else output

    start = samplers.initial_noise(sampler, jax.random.split(jax.random.key(0), 2), (4, 4, channels))
    drawn, _ = samplers.sample(sampler, predict, start, key=jax.random.split(jax.random.key(1), 2))
    assert model.clip is None
    # In the mean, as four steps of an SDE leave some noise; clipped it would be 1.
    np.testing.assert_allclose(drawn.mean(), wanted, atol=0.3)


@pytest.mark.parametrize("name", NAMES)
def test_the_average_forgets_the_initial_parameters(name):
    config = whole(name)
    _, _, decay = build.optimization(config)
    kept = jax.vmap(decay)(jnp.arange(config.training.num_steps))
    # Flow matching's 0.999999 without a warm-up would keep a quarter of them.
    assert float(jnp.exp(jnp.sum(jnp.log(jnp.broadcast_to(kept, config.training.num_steps))))) < 1e-4


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("edm")])
def test_epsilon_is_for_a_mean_where_the_released_code_sums(name):
    config = whole(name)
    values = config.data.image_size**2 * config.data.channels
    loss_scale = 100 if name == "edm_imagenet64" else 1
    np.testing.assert_allclose(config.optimizer.eps * values * loss_scale, 1e-8, rtol=1e-6)


@pytest.mark.parametrize("name", [name for name in NAMES if "classifier" not in name])
def test_scores_are_taken_as_the_paper_took_them(name):
    evaluation = whole(name).evaluation
    assert evaluation.num_images == 50_000
    assert evaluation.reference is None and evaluation.reference_images is None  # the whole training set
    assert evaluation.quantisation == QUANTISATION[name.partition("_")[0]]
    assert WORDS[evaluation.quantisation] in load(name).__doc__.replace("\n            ", " ")
    protocols = {"adm": "adm", "dit": "adm", "sit": "adm", "edm": "edm", "edm2": "edm"}
    assert evaluation.protocol == protocols.get(name.partition("_")[0])


@pytest.mark.parametrize("name", [path.stem for path in FILES])
def test_the_docstring_says_how_to_run_it(name):
    text = load(name).__doc__
    assert f"./launch/local.sh --config configs/papers/{name}.py" in text
    for heading in ("Paper", "Network:", "Sampler:", "Protocol:", "Cost:"):
        assert f"\n{heading}" in text, heading
    assert not re.search(r"\b[A-Z]{8,}\b", text)  # a word left for what was to be written


@pytest.mark.parametrize("name", NAMES)
def test_a_quick_run_changes_sizes_only(name):
    config = quick(name)
    before, small = dict(experiment.flatten(config)), experiment.shrink(config)
    after = dict(experiment.flatten(small))
    changed = {field for field, value in after.items() if value != before[field]}
    assert changed <= SIZES
    if "channel_mults" in config.model:
        assert len(small.model.channel_mults) == min(len(config.model.channel_mults), 2)
    # At the full size, or below it, or both.
    where = [
        {resolution >= part.data.image_size for resolution in part.model.get("attention_resolutions", ())}
        for part in (config, small)
    ]
    assert where[0] == where[1]
    experiment.check(small, num_devices=1)
    assert dict(experiment.flatten(experiment.shrink(small))) == after


@pytest.fixture
def compiled_for_one_run(monkeypatch):
    """A quick run is nearly all compilation: half as long without optimisation, and for one device instead of eight."""
    one_device = functools.partial(sharding.make_mesh, devices=jax.devices()[:1])
    monkeypatch.setattr(sharding, "make_mesh", one_device)
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.usefixtures("compiled_for_one_run")
@pytest.mark.parametrize(
    "name", [name if name in DEFAULT_RUNS else pytest.param(name, marks=pytest.mark.slow) for name in RUNS]
)
def test_the_quick_run_trains_samples_evaluates_and_reports(name, tmp_path):
    config = quick(name)
    assert run.run(config, tmp_path, table.WHOLE_RUN, command="") == 0
    for product in (name for job in table.WHOLE_RUN for name in table.JOBS[job].leaves):
        assert (tmp_path / product).exists(), product
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite(losses).all() and len(losses) > 1
    result = json.loads((tmp_path / "evaluation.json").read_text())
    protocol = result["protocol"]
    if config.method.name == "classifier":
        assert 0 <= result["accuracy"] <= 1
        return
    assert protocol["sampler"] == config.sampling.name
    if config.sampling.guidance_scale != 1:
        assert protocol["guidance_scale"] == config.sampling.guidance_scale

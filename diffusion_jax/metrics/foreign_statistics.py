"""The reference statistics that other projects publish: what is in them, and the protocol that each implies.

TTUR, pytorch-fid, ADM, EDM and EDM2, clean-fid, score_sde, StyleGAN3, jax-fid, MeanFlow, JiT and torch-fidelity. Most
hold only mu and sigma, so that the name of the file has to say by whom they are; a name that says nothing is not
guessed at. Pickles are read without running anything in them.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax import readers
from diffusion_jax.metrics.distances import Gaussian, gaussian, moments
from diffusion_jax.metrics.protocols import DINOV2, PROTOCOLS
from diffusion_jax.metrics.statistics import Statistics, StatisticsError, load_own

EXTENSIONS = (".npz", ".pkl", ".pickle", ".pt")
# (pattern of the file's name, protocol, whose file): the first that fits. The names are the published ones.
_NAMES = (
    (r"legacy_tensorflow", "tf", "clean-fid"),
    (r"legacy_pytorch", "pytorch-fid", "clean-fid"),
    (r"_clean_", "clean", "clean-fid"),
    (r"fid_stats.*_pytorch|pytorch[-_]?fid", "pytorch-fid", "pytorch-fid"),
    (r"fid_stats.*guided_diffusion|^adm_|virtual_", "adm", "ADM"),
    (r"fid_stats_\w+_(train|valid|val|test)\b|fid_stats_celeba\b", "tf", "TTUR"),
    (r"^jit_in\d+", "torch-fidelity", "JiT"),
    (r"^(cifar10-32x32|ffhq-64x64|afhqv2-64x64|imagenet-64x64)", "edm", "EDM"),
    (r"-stat-fid-", "torch-fidelity", "torch-fidelity"),
)


def load(path: str | Path, features: str = "") -> Statistics | None:
    """The statistics in a file of any known format; None for an .npz that holds images and nothing else.

    Args:
      path: .npz, .pkl, .pickle or .pt.
      features: the extractor that is wanted, where a file has moments for several (EDM2's have FID and DINOv2).

    Raises:
      StatisticsError: in one line: no such file, an unknown content, a damaged or a hostile file.
    """
    path = Path(path)
    if not path.is_file():
        raise StatisticsError(f"{path}: no such file")
    if path.suffix == ".npz":
        return load_own(path) or _npz(path)
    try:
        tree = readers.read_tree(path)
    except readers.ReadError as error:
        raise StatisticsError(str(error)) from None
    return _pickled(path, tree, features)


def _npz(path: Path) -> Statistics | None:
    try:
        with readers.Npz(path) as file:  # members are read when asked for: arr_0 may have gigabytes
            names = set(file.names)
            has_images = "arr_0" in names
            for mean, covariance in (("mu", "sigma"), ("ref_mu", "ref_sigma")):
                if mean in names and covariance in names:
                    both = gaussian(file[mean], file[covariance])
                    spatial = gaussian(file["mu_s"], file["sigma_s"], "_s") if "mu_s" in names else None
                    name, protocol = _implied(path, names)
                    return Statistics(both, spatial, None, _made_by(protocol), name, has_images=has_images)
            for key in ("pool_3", "feats"):
                if key in names:
                    rows = np.asarray(file[key]).reshape(len(file[key]), -1)
                    name, protocol = _implied(path, names)
                    origin = Gaussian(*moments(rows))
                    return Statistics(origin, None, len(rows), _made_by(protocol), name, rows)
    except StatisticsError:
        raise
    except ValueError as error:
        raise StatisticsError(f"{path}: is no .npz, or a damaged one ({readers.reason(error)})") from None
    if has_images:
        return None
    raise StatisticsError(f"{path}: holds {', '.join(sorted(names)) or 'nothing'}; expected mu and sigma, or arr_0")


def _implied(path: Path, names: set[str]) -> tuple[str, str | None]:
    """(whose file it is, the protocol that it implies or None)."""
    if "mu_s" in names or {"arr_0", "mu"} <= names:
        return "ADM", "adm"
    if "ref_mu" in names:
        return "MeanFlow", "tf"
    if "pool_3" in names:
        return "score_sde", "score_sde"
    for pattern, protocol, owner in _NAMES:
        if re.search(pattern, path.name.lower()):
            return owner, protocol
    return "of unknown origin (mu and sigma in an .npz)", None


def _pickled(path: Path, tree: Any, features: str) -> Statistics:
    if isinstance(tree, Mapping):
        if {"raw_mean", "raw_cov", "num_items"} <= tree.keys() and tree["raw_mean"] is not None:
            count = int(tree["num_items"])
            mean = np.asarray(tree["raw_mean"], np.float64) / count
            covariance = np.asarray(tree["raw_cov"], np.float64) / count - np.outer(mean, mean)
            return Statistics(gaussian(mean, covariance), None, count, _made_by("stylegan3"), "StyleGAN3")
        wanted = "fd_dinov2" if features.startswith("dinov2") else "fid"
        if wanted in tree and {"mu", "sigma"} <= tree[wanted].keys():
            made_by = {"extractor": DINOV2} if wanted == "fd_dinov2" else _made_by("edm")
            both = gaussian(tree[wanted]["mu"], tree[wanted]["sigma"])
            return Statistics(both, None, int(tree["num_images"]) if "num_images" in tree else None, made_by, "EDM2")
        if {"mu", "sigma"} <= tree.keys():
            name, protocol = ("torch-fidelity", "torch-fidelity") if path.suffix == ".pt" else _implied(path, set())
            return Statistics(gaussian(tree["mu"], tree["sigma"]), None, None, _made_by(protocol), name)
        found = ", ".join(map(str, tree.keys()))
        raise StatisticsError(
            f"{path}: holds {found or 'nothing'}; expected mu and sigma, fid, or raw_mean and raw_cov"
        )
    raise StatisticsError(f"{path}: holds a {type(tree).__name__}; expected a dictionary with mu and sigma")


def _made_by(protocol: str | None) -> dict[str, Any]:
    if protocol is None:
        return {}
    if protocol == "score_sde":  # TensorFlow GAN's Inception: other half-pixel resize, (x - 127.5) / 127.5
        return {"protocol": protocol, "extractor": "inception-tfgan", "covariance_divisor": "N - 1"}
    known = PROTOCOLS[protocol]
    return {
        "protocol": protocol,
        "extractor": known.extractor,
        "preprocessing": known.preprocessing,
        "covariance_divisor": known.covariance_divisor,
    }

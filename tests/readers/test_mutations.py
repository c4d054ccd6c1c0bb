"""Small files of every kind, changed by seed: each opens, or is refused in one line, in seconds and little memory.

The short form is part of the suite; the long one, with thousands of files, runs with -m slow -s.
"""

import contextlib
import json
import pickle
import random
import resource
import shutil
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_jax import hub, readers
from diffusion_jax.data import decode
from diffusion_jax.hub.files import TensorFile
from diffusion_jax.hub.tokenizer import load_tokenizer
from diffusion_jax.metrics import foreign_statistics, statistics
from tests import golden
from tests.hub import folders, pipeline_folders
from tests.readers import test_graph_def
from tests.readers.test_read import FIXTURES

LONGEST, SECONDS, KILOBYTES = 300, 20, 2_000_000  # of a message behind the folder; a file; memory that all may add
MOST = 4 * 2**30  # bytes that a file may ask for, before it is refused and counts as wrong
NUMBERS = (0, -1, 2**31, 2**53 + 1, 2**63, 10**400, 1e308, -1e-308, float("nan"), float("inf"))
VALUES = (*NUMBERS, None, True, "", "x" * 100_000, [], [[[]]], {}, {"a": {"b": []}}, [1] * 1000, ["a", None])
HEADERS = (b"\xff" * 8, b"\x00" * 8, b"\x7f\xff\xff\xff", (2**62).to_bytes(8, "little"), b"99999999999", b"[[[[[[[[")


def changed_bytes(content: bytes, rng: random.Random) -> bytes:
    """Flipped bits, a part cut off or out, a part twice, or a number in the place of another."""
    data, kind = bytearray(content), rng.choice(("flip", "flip", "cut", "drop", "twice", "number"))
    place = rng.randrange(len(data))
    # headers are short and say the most
    place = rng.randrange(min(len(data), 400)) if rng.random() < 0.5 else place
    if kind == "flip":
        for _ in range(rng.choice((1, 1, 2, 8))):
            data[min(len(data) - 1, place + rng.randrange(16))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del data[place:]
    elif kind == "drop":
        del data[place : place + rng.randrange(1, 64)]
    elif kind == "twice":
        data[place:place] = data[place : place + rng.randrange(1, 64)]
    else:
        number = rng.choice(HEADERS)
        data[place : place + len(number)] = number
    return bytes(data)


def changed_json(content: bytes, rng: random.Random) -> bytes:
    """A value of another type or size, a field less, or the text itself changed."""
    if rng.random() < 0.2:
        return changed_bytes(content, rng)
    if rng.random() < 0.03:
        return b"[" * 100_000
    tree = json.loads(content)
    node = tree
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return json.dumps(rng.choice(VALUES)).encode()
        key = rng.choice(keys)
        if isinstance(node[key], (dict, list)) and node[key] and rng.random() < 0.7:
            node = node[key]
            continue
        if rng.random() < 0.15:
            del node[key]
        else:
            node[key] = rng.choice(VALUES)
        return json.dumps(tree).encode()


def tensors(path):
    readers.read_tensors(path)


def safetensors(path):
    with TensorFile(path) as file:
        return file.shapes, file.tensors(), file.metadata


def image(path):
    return decode.read_image(path, str(path), image_size=8, channels=3)


def statistics_of_others(path):
    return foreign_statistics.load(path, "inception")


def folder_of(name, opener):
    """Opens the folder of the file: the others in it are whole."""
    return lambda path: opener(path.parent)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """Kind -> (file, how it is changed, the entry point that opens it, how often)."""
    root = tmp_path_factory.mktemp("whole")
    found = {}
    for path in sorted(FIXTURES.iterdir()):
        if path.is_file() and path.stat().st_size < 20_000 and path.suffix not in (".py", ".json", ".md"):
            found[f"weights {path.name}"] = (path, changed_bytes, tensors, 3)
    for name in ("vae-tiny", "text-clip-quickgelu", "text-t5", "dit", "unet-sd15"):
        directory = folders.write(name, root / name)
        found[f"config of {name}"] = (directory / "config.json", changed_json, folder_of(name, hub.load), 1)
    weights = next((root / "vae-tiny").glob("*.safetensors"))
    found["safetensors"] = (weights, changed_bytes, safetensors, 6)
    scheduler = golden.GOLDENS / "pipeline-sd15" / "scheduler" / "scheduler_config.json"
    found["scheduler"] = (scheduler, changed_json, lambda path: hub.load_sampler(path, 4), 5)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        directory = root / f"with {file}"
        shutil.copytree(golden.GOLDENS / "pipeline-sd15" / "tokenizer", directory)
        found[f"tokeniser's {file}"] = (directory / file, changed_json, folder_of(file, load_tokenizer), 5)
    rng = np.random.default_rng(0)
    features = rng.standard_normal((20, 8))
    np.savez(root / "foreign.npz", mu=features.mean(0), sigma=np.cov(features.T))
    np.savez_compressed(root / "packed.npz", mu=features.mean(0), sigma=np.cov(features.T))
    for file in ("foreign.npz", "packed.npz"):
        found[f"statistics {file}"] = (root / file, changed_bytes, statistics_of, 5)
    sums = {"num_items": 20, "raw_mean": features.sum(0), "raw_cov": features.T @ features, "all_features": None}
    (root / "ffhq.pkl").write_bytes(pickle.dumps(sums))
    moments = {"mu": features.mean(0), "sigma": np.cov(features.T)}
    (root / "img512.pkl").write_bytes(pickle.dumps({"fid": moments, "dinov2": moments, "num_images": 20}))
    for file in ("ffhq.pkl", "img512.pkl"):
        found[f"statistics {file}"] = (root / file, changed_bytes, statistics_of_others, 4)
    found["graph"] = (test_graph_def.written(root, test_graph_def.graph()), changed_bytes, tensors, 4)
    pipeline = pipeline_folders.write("pipeline-ddpm", root / "ddpm")
    found["pipeline's index"] = (pipeline / "model_index.json", changed_json, folder_of("index", hub.load_pipeline), 1)
    pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
    for ending in ("png", "jpg", "gif", "bmp", "webp", "tiff"):
        Image.fromarray(pixels).save(root / f"image.{ending}")
        found[f"image.{ending}"] = (root / f"image.{ending}", changed_bytes, image, 4)
    return found


def statistics_of(path):
    statistics.load_own(path)
    with readers.Npz(path) as file:
        return [file[name] for name in file.names]


def attempt(kind, seed, kinds, directory) -> str | None:
    """What is wrong with how a changed file is opened; None if nothing."""
    whole, change, opener, _ = kinds[kind]
    rng = random.Random(f"{kind} {seed}")
    place = directory / "case"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    if kind.startswith(("config", "tokeniser", "pipeline")):
        shutil.copytree(whole.parent, place, dirs_exist_ok=True)
    path = place / whole.name
    path.write_bytes(change(whole.read_bytes(), rng))
    begun = time.monotonic()
    try:
        opener(path)
    except ValueError as error:
        if out_of_memory(error):
            return f"{kind}, {seed}: asks for more than {MOST >> 30} GiB: {str(error)[-150:]!r}"
        message = str(error).replace(str(place), "")
        if "\n" in message or len(message) > LONGEST:
            return f"{kind}, {seed}: {len(message)} characters: {message[:200]!r}"
    except BaseException as error:  # panics of Rust's extensions are no Exceptions
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{kind}, {seed}: {type(error).__name__}: {str(error)[:200]}"
    seconds = time.monotonic() - begun
    return f"{kind}, {seed}: {seconds:.0f} s" if seconds > SECONDS else None


@contextlib.contextmanager
def limited_memory():
    """No more than so much beside what the process has: a file that asks for all there is must not get it."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    status = Path("/proc/self/status").read_text()
    here = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (here + MOST, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def out_of_memory(error: BaseException | None) -> bool:
    """Whether a MemoryError is behind the refusal."""
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False


def survey(kinds, directory, factor) -> Counter[str]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tried, wrong = Counter(), []
    for kind, (_, _, _, often) in kinds.items():
        for seed in range(often * factor):
            tried[kind] += 1
            with limited_memory():
                wrong += filter(None, [attempt(kind, seed, kinds, directory)])
    assert not wrong, f"{len(wrong)} of {tried.total()}:\n" + "\n".join(wrong[:40])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < KILOBYTES
    return tried


@pytest.mark.filterwarnings("ignore")
def test_changed_files_open_or_are_refused_in_one_line(kinds, tmp_path):
    assert survey(kinds, tmp_path, 4).total() >= 300


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_thousands_of_changed_files(kinds, tmp_path):
    tried = survey(kinds, tmp_path, 60)
    print(f"\n{tried.total()} changed files", dict(tried))
    assert tried.total() >= 4000

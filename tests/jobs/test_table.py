"""Jobs are records of one table: their functions exist, and a new one is a file and a record."""

import inspect

import pytest

from diffusion_jax import main
from diffusion_jax.jobs import job as job_of
from diffusion_jax.jobs.job import Job, imported
from diffusion_jax.jobs.table import JOBS, WHOLE_RUN, files, made_by
from tests.configs import tiny

# A job in a file of its own, which counts the checkpoints of a run; asked to, it leaves nothing.
FILE = """
def count(session):
    if session.config.seed == 0:
        session.write_json("count.json", {"checkpoints": len(list((session.workdir / "checkpoints").iterdir()))})
"""


@pytest.mark.parametrize("job", JOBS.values(), ids=str)
def test_every_record_names_what_is_there(job):
    functions = [name for name in (job.function, job.command) if name is not None]
    assert functions and job.help and not set(job.leaves) & set(job.writes)
    for name in functions:
        assert len(inspect.signature(imported(name)).parameters) == 1
    assert all(made_by(need) != job.name for need in job.needs)


def test_the_whole_run_leaves_what_each_of_its_jobs_needs():
    there = set()
    for name in WHOLE_RUN:
        assert set(JOBS[name].needs) <= there
        there |= set(JOBS[name].leaves)
    assert {"config.json", "samples.png", "report.html"} <= files() and "checkpoints/" not in files()


def test_a_job_is_a_file_and_a_record(tmp_path, monkeypatch, capsys):
    """In the help, run by --mode, refused before it has what it needs, and missed where it leaves nothing."""
    (tmp_path / "count.py").write_text(FILE)
    monkeypatch.setattr(job_of.importlib.import_module("diffusion_jax.jobs"), "__path__", [*_rooms(), str(tmp_path)])
    monkeypatch.setitem(
        JOBS,
        "count",
        Job("count", "count the checkpoints", "count:count", needs=("metrics.jsonl",), leaves=("count.json",)),
    )

    def command(*arguments):
        line = ["main", "--config", tiny.__file__, "--workdir", str(tmp_path / "run"), "--config.training.num_steps=5"]
        return main.main([*line, "--config.optimizer.warmup_steps=0", *arguments])

    assert main.main(["main", "--help"]) == 0
    assert "count      count the checkpoints" in capsys.readouterr().out
    assert command("--mode", "count") == 2
    assert "metrics.jsonl is missing, which --mode count needs; run --mode train first" in capsys.readouterr().err
    assert command("--mode", "train") == 0
    assert command("--mode", "count") == 0
    assert (tmp_path / "run" / "count.json").is_file()
    (tmp_path / "run" / "count.json").write_text("")
    monkeypatch.setattr(imported("count:count"), "__code__", (lambda session: None).__code__)
    capsys.readouterr()
    assert command("--mode", "count") == 1
    assert "lacks count.json" in capsys.readouterr().err


def _rooms():
    from diffusion_jax import jobs

    return list(jobs.__path__)


def test_a_job_with_options_of_its_own_is_a_mode_too(capsys):
    with pytest.raises(SystemExit) as ended:
        main.main(["main", "--mode", "encode", "--help"])
    assert ended.value.code == 0 and "--vae" in capsys.readouterr().out
    assert main.main(["main", "--mode=encode", "--vae", "nowhere", "--out", "/dev/null/out"]) == 2

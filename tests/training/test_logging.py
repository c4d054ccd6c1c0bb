import io
import json

import jax
import jax.numpy as jnp
import pytest
from tensorboardX.proto.event_pb2 import Event

from diffusion_jax.training import logging


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def write(workdir, steps, start_step=0, **scalars):
    with logging.MetricsWriter(workdir, start_step) as writer:
        for step in steps:
            writer.write(step, {"loss": step / 10, **scalars})


def test_one_object_a_line(tmp_path):
    write(tmp_path, [10, 20], grad_norm=float("nan"))
    assert lines(tmp_path) == [
        {"step": 10, "loss": 1.0, "grad_norm": None},
        {"step": 20, "loss": 2.0, "grad_norm": None},
    ]


def test_lines_are_on_disk_at_once(tmp_path):
    writer = logging.MetricsWriter(tmp_path)
    writer.write(1, {"loss": 0.5})
    assert lines(tmp_path) == [{"step": 1, "loss": 0.5}]
    writer.close()


@pytest.mark.parametrize("cut", [0, 5])
def test_resuming_drops_what_will_be_computed_again(tmp_path, cut):
    write(tmp_path, [10, 20, 30])
    if cut:  # a kill in mid-write
        path = tmp_path / "metrics.jsonl"
        path.write_text(path.read_text()[:-cut])
    write(tmp_path, [30, 40], start_step=20)
    assert [line["step"] for line in lines(tmp_path)] == [10, 20, 30, 40]
    write(tmp_path, [7], start_step=0)
    assert [line["step"] for line in lines(tmp_path)] == [7]


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    write(tmp_path, [10])
    progress = logging.Progress(0, 10, 4, stream=(stream := io.StringIO()))
    progress.update(1)
    progress.close()
    assert list(tmp_path.iterdir()) == [] and stream.getvalue() == ""


def test_events_reach_tensorboard(tmp_path):
    write(tmp_path, [10, 20])
    [path] = (tmp_path / "tensorboard").iterdir()
    data, events = path.read_bytes(), []
    while data:  # TFRecord: length (8 bytes), checksum (4), payload, checksum (4)
        length = int.from_bytes(data[:8], "little")
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    scalars = [(event.step, value.tag, value.simple_value) for event in events for value in event.summary.value]
    assert scalars == [(10, "loss", 1.0), (20, "loss", 2.0)]


def test_progress_in_a_file_is_a_line_now_and_then(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(logging.time, "monotonic", lambda: now[0])
    progress = logging.Progress(100, 200, batch_size=32, stream=(stream := io.StringIO()))
    for step in range(101, 151):
        now[0] += 0.5
        progress.update(step, loss=0.25 if step == 130 else None)
    assert stream.getvalue().splitlines() == [
        "step 120/200, 2 steps/s, 64 images/s, 0:00:40 left",  # no loss is known yet
        "step 140/200, loss 0.25, 2 steps/s, 64 images/s, 0:00:30 left",
    ]
    progress.close()
    assert stream.getvalue().splitlines()[-1].startswith("step 150/200")


def test_progress_on_a_terminal_is_a_bar():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    with logging.Progress(0, 4, batch_size=8, stream=(stream := Terminal())) as progress:
        for step in range(1, 5):
            progress.update(step, loss=0.125)
    assert "4/4" in stream.getvalue() and "loss 0.125" in stream.getvalue() and "images/s" in stream.getvalue()


def test_parameters_are_listed_and_counted():
    params = {"conv": {"kernel": jnp.zeros((3, 3, 4, 8)), "bias": jnp.zeros(8)}}
    overview = logging.parameter_overview(params)
    assert "conv/kernel" in overview and "(3, 3, 4, 8)" in overview and "Total: 296" in overview
    assert logging.count_parameters(params) == 296

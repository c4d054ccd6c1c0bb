"""The training loop, one for every method: start or resume, step, report, save, stop."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from diffusion_jax.options import check_choice, check_least, described
from diffusion_jax.training import ema, memory, metrics, replay, sharding, subset
from diffusion_jax.training import state as train_state
from diffusion_jax.training.checkpoints import Checkpoints
from diffusion_jax.training.distributed import leaving_if_one_is_lost
from diffusion_jax.training.ema_snapshots import Snapshots
from diffusion_jax.training.gradients import MATMUL_PRECISIONS, num_rows
from diffusion_jax.training.guard import Flight, Watch
from diffusion_jax.training.interruption import Interruption
from diffusion_jax.training.logging import (
    MetricsWriter,
    Progress,
    count_parameters,
    parameter_overview,
    say,
    write_file,
)
from diffusion_jax.training.method import (
    AlternatingMethod,
    Batch,
    Batches,
    Method,
    by_part,
    drawn_with,
    updates_per_step,
)
from diffusion_jax.training.optimizer import LearningRate
from diffusion_jax.training.power_ema import PosthocEMA
from diffusion_jax.training.scoring import Scorekeeper, Scoring
from diffusion_jax.training.state import Optimizers, TrainState
from diffusion_jax.training.step import make_train_step
from diffusion_jax.training.timing import Stopwatch, Timing

# From new parameters, on the devices, to those that a run begins with.
Start = Callable[[Any], Any]


class DivergenceError(ValueError):
    """The loss or its gradient is not finite any more; the message is one line for the user."""


@described(
    num_steps="updates",
    accumulation_steps="parts of a batch that are gone through one after the other; 0: as few as memory allows",
    matmul_precision="of float32 products: highest is float32; high; default lets GPUs use TF32, TPUs bfloat16",
    log_every="updates between lines of metrics.jsonl",
    checkpoint_every="updates between checkpoints",
    max_to_keep="newest checkpoints that are kept, beside the best",
    sanitize_gradients="infinities in gradients become large numbers, as in EDM's released code",
    max_bad_steps="updates in a row that may be left out because they are not finite",
    trainable="patterns of the names of parameters, such as *attention*,out/*: only those are trained; (): all",
)
@dataclasses.dataclass(frozen=True)
class TrainingOptions:
    """How long a run is, and how often it reports and saves.

    Attributes:
      num_steps: updates.
      seed: of the parameters and of everything random in the loss.
      accumulation_steps: parts that each batch is cut into, gone through one after the other; 0 is as few as the
        memory of the devices allows.
      matmul_precision: see `step.make_train_step`.
      log_every: steps between lines of metrics.jsonl; a line has the averages since the last.
      checkpoint_every: steps between checkpoints; there is one at the end in any case.
      max_to_keep: checkpoints; older ones are deleted.
      sanitize_gradients: see `step.make_train_step`.
      max_bad_steps: how many updates in a row may be left out because loss or gradient are not finite; one more ends
        the run.
      trainable: patterns of the parameters that are trained, see `subset.split`; () trains all.
      debug: end it at the first, and say what is not finite and where.
    """

    num_steps: int = 10_000
    seed: int = 0
    accumulation_steps: int = 1
    matmul_precision: str = "highest"
    log_every: int = 100
    checkpoint_every: int = 1000
    max_to_keep: int = 2
    sanitize_gradients: bool = False
    max_bad_steps: int = 10
    trainable: tuple[str, ...] = ()
    debug: bool = False

    def __post_init__(self) -> None:
        check_least(0, max_bad_steps=self.max_bad_steps, accumulation_steps=self.accumulation_steps)
        check_least(1, num_steps=self.num_steps, log_every=self.log_every)
        check_least(1, checkpoint_every=self.checkpoint_every, max_to_keep=self.max_to_keep)
        check_choice("matmul_precision", self.matmul_precision, MATMUL_PRECISIONS)


@dataclasses.dataclass(frozen=True)
class Pictures:
    """What is shown in TensorBoard on the way.

    Attributes:
      draw: averaged parameters -> a picture, uint8 [H, W, 3]; called by all processes.
      every: updates between pictures; the last update has one too.
    """

    draw: Callable[[Any], np.ndarray]
    every: int


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """The state at the end, the time it took, and the signal that ended the run early, if one did."""

    state: TrainState
    timing: Timing
    interrupted: signal.Signals | None


def train(
    method: Method | AlternatingMethod,
    batches: Batches,
    workdir: str | os.PathLike[str],
    *,
    optimizer: Optimizers,
    learning_rate: LearningRate | Mapping[str, LearningRate],
    ema_decay: ema.Decay,
    mesh: Mesh,
    options: TrainingOptions,
    posthoc_ema: PosthocEMA | None = None,
    scoring: Scoring | None = None,
    pictures: Pictures | None = None,
    start: Start | None = None,
) -> TrainResult:
    """Trains from the newest checkpoint in `workdir`, or from the start, to `options.num_steps` updates.

    A run that was interrupted, by a signal or by a kill, ends with the same bits as one that was not. SIGTERM, Ctrl-C
    and SIGUSR1 finish the step at hand and save; the result then names the signal. Where one of several processes is
    lost, the others end themselves (`distributed.leaving_if_one_is_lost`).

    Args:
      method: gives parameters and loss.
      batches: this host's part of each batch.
      workdir: gets checkpoints/, metrics.jsonl, tensorboard/, parameters.txt and timing.json, ema_snapshots/ if they
        are asked for, frozen/ if not all is trained, spikes.json if the loss ever stood out, and replay/ if it stopped
        being finite.
      optimizer, learning_rate: from `optimizer.make_optimizer`; of an alternating method, part -> those of the part.
        The rate is only reported.
      ema_decay: from `ema.make_ema`.
      mesh: from `sharding.make_mesh`.
      options: see there.
      posthoc_ema: averages that are kept for `ema_snapshots.reconstruct`; by default none.
      pictures: pictures of samples on the way, for TensorBoard; by default none.
      scoring: scores that are taken on the way, written to metrics.jsonl; they may keep the best parameters in best/
        and end the run early. By default none.
      start: from new parameters to those that a run begins with; a run that resumes does not ask it.

    Raises:
      DivergenceError: the loss or its gradient was not finite for too many steps; replay/ holds the last of them.
      CheckpointError: a checkpoint cannot be written, none can be read, or it is of another model.
      WriteError: another file in `workdir` cannot be written.
      ValueError: the batch does not split over devices and accumulation steps, or the data changed since the
        checkpoint.
    """
    workdir = Path(workdir).absolute()
    key = jax.random.key(options.seed)
    init_key, step_key = jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)
    snapshot_every = posthoc_ema.snapshot_every if posthoc_ema else None
    widths = posthoc_ema.sigma_rels if posthoc_ema and snapshot_every else ()
    with (
        Interruption() as interruption,
        Checkpoints(workdir / "checkpoints", options.max_to_keep) as checkpoints,
        contextlib.ExitStack() as stack,
    ):
        state, step, batch, batch_size, record = _start(
            method,
            batches,
            optimizer,
            mesh,
            workdir,
            checkpoints,
            init_key,
            options.accumulation_steps or 1,
            len(widths),
            options.trainable,
            start,
        )
        timing = Timing(**record["timing"]) if record else Timing()
        interval = metrics.from_sums(record["interval"]) if record and record["interval"] else None
        write_file(workdir / "parameters.txt", parameter_overview(state.params) + "\n")
        kept = f" and {count_parameters(state.frozen):,} frozen ones" if options.trainable else ""
        device = mesh.devices.flat[0].device_kind
        say(f"{count_parameters(state.params):,} parameters{kept} on {mesh.size} x {device}")
        if step >= options.num_steps:
            say(f"the checkpoint of step {step} is trained for all {options.num_steps} steps")
            _write_timing(workdir, timing)  # a kill may have come between the last checkpoint and this file
            return TrainResult(state, timing, interruption.signal)
        scorekeeper = stack.enter_context(Scorekeeper(scoring, workdir, step)) if scoring else None
        if scorekeeper is not None and scorekeeper.stopped:
            say(f"the scores up to step {step} ended the training")
            _write_timing(workdir, timing)
            return TrainResult(state, timing, interruption.signal)

        watch = Stopwatch()

        def compile_step(accumulation_steps: int) -> Any:
            train_step = make_train_step(
                method,
                optimizer,
                ema_decay,
                mesh,
                sharding.state_shardings(mesh, state),
                accumulation_steps=accumulation_steps,
                matmul_precision=options.matmul_precision,
                profile_decays=[ema.make_ema("power", sigma_rel=width) for width in widths],
                sanitize_gradients=options.sanitize_gradients,
                max_bad_steps=0 if options.debug else options.max_bad_steps,
            )
            return train_step.lower(state, batch, step_key).compile()

        if options.accumulation_steps:
            train_step = compile_step(options.accumulation_steps)
        else:
            _, train_step = memory.fit_batch(compile_step, mesh, batch_size, memory.available(mesh))
        seconds = watch.lap()
        timing.compile_seconds += seconds
        say(f"compiled the training step in {seconds:.1f} s")

        snapshots = stack.enter_context(Snapshots(workdir, widths, step)) if widths else None
        saved, reported, report_watch = step, step, Stopwatch()
        guard = Watch(workdir, 0 if options.debug else options.max_bad_steps, int(state.bad_steps), record.get("guard"))
        with (
            MetricsWriter(workdir, step) as writer,
            Progress(step, options.num_steps, batch_size) as progress,
            leaving_if_one_is_lost(),
        ):
            while True:
                state, sums = train_step(state, batch, step_key)
                step += 1
                interval = metrics.accumulate(interval, sums)
                guard.add(step, batch, sums)
                last = step == options.num_steps or interruption.requested(step)
                log = step % options.log_every == 0 or step == options.num_steps
                save = step % options.checkpoint_every == 0 or last
                snap = snapshot_every is not None and (step % snapshot_every == 0 or step == options.num_steps)
                due = scorekeeper is not None and scorekeeper.due(step, last=step == options.num_steps)
                shown = pictures is not None and (step % pictures.every == 0 or step == options.num_steps)
                if log or save or snap or due or shown:
                    guard.drain()
                if guard.failed is not None:
                    again = replay.Replay(guard.failed.step, state, guard.failed.batch, step_key)
                    replay.save(workdir, again, batches.get_state())
                    if options.debug:
                        _say_why(method, optimizer, mesh, again, options)
                    raise _divergence(guard.failed, saved)
                loss, averages = None, {}
                if scorekeeper is not None and due:
                    score_watch = Stopwatch()
                    averages |= scorekeeper.score(step, state.ema_params)
                    last, save = last or scorekeeper.stopped, save or scorekeeper.stopped
                    seconds = score_watch.lap()
                    timing.score_seconds += seconds
                    watch.skip(seconds)
                    report_watch.skip(seconds)
                if pictures is not None and shown:
                    picture_watch = Stopwatch()
                    writer.picture(step, "samples", pictures.draw(state.ema_params))
                    seconds = picture_watch.lap()
                    watch.skip(seconds)
                    report_watch.skip(seconds)
                if log:
                    averages |= metrics.averages(interval)
                    loss, interval = averages.get("loss"), None
                    rate, reported = (step - reported) / report_watch.lap(), step
                    averages |= _rates(method, learning_rate, step - 1)
                    averages["steps_per_second"], averages["images_per_second"] = rate, rate * batch_size
                if averages:
                    writer.write(step, averages)
                if snap and snapshots is not None:
                    snapshots.save(step, state.profiles)
                if save:
                    timing.train_seconds += watch.lap()
                    timing.steps, timing.images = step, step * batch_size
                    sums_so_far = None if interval is None else metrics.to_sums(interval)
                    record = {
                        "timing": dataclasses.asdict(timing),
                        "interval": sums_so_far,
                        "guard": guard.state(),
                    }
                    checkpoints.save(step, dataclasses.replace(state, frozen=()), batches.get_state(), record)
                    saved = step
                progress.update(step, loss)
                if last:
                    break
                batch = sharding.global_batch(mesh, next(batches))
        if summary := guard.summary():
            say(summary)
        _write_timing(workdir, timing)
        return TrainResult(state, timing, interruption.signal)


def _start(
    method: Method | AlternatingMethod,
    batches: Batches,
    optimizer: Optimizers,
    mesh: Mesh,
    workdir: Path,
    checkpoints: Checkpoints,
    key: jax.Array,
    accumulation_steps: int,
    num_profiles: int,
    trainable: Sequence[str],
    start: Start | None,
) -> tuple[TrainState, int, Batch, int, dict[str, Any]]:
    """(state, step, next batch, global batch size, record of the checkpoint, {} without one)."""

    def create(key: jax.Array, batch: Batch) -> TrainState:
        return train_state.initial(method, optimizer, key, batch, num_profiles, trainable)

    local_batch = next(batches)
    batch_size = num_rows(local_batch) * jax.process_count()
    sharding.check_batch_size(mesh, batch_size, accumulation_steps)
    batch = sharding.global_batch(mesh, local_batch)
    shapes = sharding.sharded_shapes(mesh, jax.eval_shape(create, key, batch))
    restored = checkpoints.restore(dataclasses.replace(shapes, frozen=()))
    if restored is None:
        shardings = sharding.state_shardings(mesh, shapes)
        state = jax.jit(create, out_shardings=shardings)(key, batch)
        if start is not None:
            params = start(subset.merge(state.params, state.frozen))
            begin = functools.partial(
                train_state.begun, method, optimizer, num_profiles=num_profiles, trainable=trainable
            )
            state = jax.jit(begin, out_shardings=shardings)(params)
        subset.save(workdir, state.frozen, drawn_with(method))
        return state, 0, batch, batch_size, {}
    say(f"resuming from the checkpoint of step {restored.step}")
    batches.set_state(restored.batches)
    frozen = subset.restore(workdir, shapes.frozen, drawn_with(method))
    state = dataclasses.replace(restored.state, frozen=frozen)
    return state, restored.step, sharding.global_batch(mesh, next(batches)), batch_size, restored.record


def _write_timing(workdir: Path, timing: Timing) -> None:
    write_file(workdir / "timing.json", json.dumps(timing.summary(), indent=2) + "\n")


def _rates(
    method: Method | AlternatingMethod, learning_rate: LearningRate | Mapping[str, LearningRate], steps: int
) -> dict[str, float]:
    """The learning rate of each part after so many steps."""
    return {
        f"learning_rate_{part}" if part else "learning_rate": float(rate(int(steps * updates_per_step(method, part))))
        for part, rate in by_part(learning_rate).items()
    }


def _divergence(failed: Flight, saved: int) -> DivergenceError:
    kept = f"the checkpoint of step {saved} is kept" if saved else "nothing was saved yet"
    return DivergenceError(
        f"training diverged before step {failed.step} (loss or gradient is not finite); {kept}, and --mode replay says "
        "what is not finite where; lower optimizer.learning_rate or optimizer.clip_norm, or lengthen "
        "optimizer.warmup_steps"
    )


def _say_why(
    method: Method | AlternatingMethod,
    optimizer: Optimizers,
    mesh: Mesh,
    again: replay.Replay,
    options: TrainingOptions,
) -> None:
    for line in replay.diagnose(
        method,
        optimizer,
        mesh,
        again,
        accumulation_steps=options.accumulation_steps or 1,
        matmul_precision=options.matmul_precision,
    ):
        say(line)

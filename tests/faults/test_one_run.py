"""One run that meets every kind of fault, one after the other, and has to end with the bits of an undisturbed one.

The short form is part of the suite; the long one, with a hundred kills, runs with -m slow -s.
"""

import random
import signal
import time

import pytest

from tests.training.test_checkpoints import damage
from tests.training.test_interruption import assert_same_end, finish, last_step, saved_steps, start

KILL, KILL_IN_SAVE, KILL_IN_START = "SIGKILL", "SIGKILL in a save", "SIGKILL before the first steps"
TERMINATE = "SIGTERM"
FLIP, TRUNCATE, FULL_DISK = "flipped bits", "truncated files", "full disk"
KILLS = (KILL, KILL_IN_SAVE, KILL_IN_START)
SHORT = (KILL_IN_SAVE, KILL, FLIP, KILL_IN_SAVE, TRUNCATE, KILL_IN_START, KILL)
# Kinds that need no process of their own: the next start finds the damage.
AT_REST = {FLIP: "flip", TRUNCATE: "truncate"}
CLEAN_EXIT = {**dict.fromkeys(KILLS, -signal.SIGKILL), TERMINATE: 143, FULL_DISK: 2}


class Run:
    """A run that is disturbed again and again; `num_steps` has to outlast the faults."""

    def __init__(self, workdir, num_steps, rng, tried):
        self.workdir, self.num_steps, self.rng, self.faults = workdir, num_steps, rng, []
        self.tried = lambda fault: (self.faults.append(fault), tried(fault))
        self.damaged = None  # the step of a checkpoint that no start has spoken of yet
        self.start_seconds = 5.0  # how long the last start took to its first steps

    def start(self, *options, checkpoint_every=1):
        common = ("--num_steps", self.num_steps, "--checkpoint_every", checkpoint_every)
        return start(self.workdir, *common, *options)

    def suffer(self, fault):
        """One start that ends with `fault`; False if the run was complete before."""
        if fault in AT_REST:
            while self.damaged is not None or len(saved_steps(self.workdir)) < 2:  # one is to be left
                if not self.suffer(KILL):
                    return False
            self.damaged = saved_steps(self.workdir)[-1]
            # So many bits that some are in use: a flip in a hole of the file would hurt nothing, and not be noticed.
            damage(self.workdir / "checkpoints", self.damaged, AT_REST[fault], every=40)
            self.tried(fault)
            return True
        options = {
            KILL_IN_SAVE: ("--die_in_save", round(self.rng.uniform(0, 0.02), 4)),
            FULL_DISK: ("--file_limit", 4000),
        }
        process = self.start("--seconds", 0.03, *options.get(fault, ()))
        began, begun = time.monotonic(), last_step(self.workdir)
        patience = self.rng.uniform(0.2, 1) * self.start_seconds if fault == KILL_IN_START else float("inf")
        while process.poll() is None and last_step(self.workdir) < begun + 2 and time.monotonic() < began + patience:
            time.sleep(0.01)
        if fault == KILL_IN_START:
            process.kill()
        else:
            self.start_seconds = time.monotonic() - began
        if fault in (KILL, TERMINATE) and process.poll() is None:
            time.sleep(self.rng.uniform(0, 0.1))
            process.send_signal(signal.SIGKILL if fault == KILL else signal.SIGTERM)
        code, output = finish(process)
        if code == 0:
            return False
        assert code == CLEAN_EXIT[fault], output
        self.tried(fault)
        self.check(output, complete=fault != KILL_IN_START)
        return True

    def check(self, output, complete=True):
        """What a start says of the one before it; one that was killed before its end need not have come to that."""
        assert "Traceback" not in output, output
        if self.damaged is not None:
            told = f"checkpoints/{self.damaged} cannot be read" in output
            assert told or not complete, (self.faults[-3:], output)
            self.damaged = None if told else self.damaged

    def complete(self, undisturbed):
        code, output = finish(self.start(checkpoint_every=50))
        assert code == 0, output
        self.check(output)
        assert_same_end(self.workdir, undisturbed)


def undisturbed(folder, num_steps):
    code, output = finish(start(folder, "--num_steps", num_steps, "--checkpoint_every", 50))
    assert code == 0, output
    return folder


def test_kills_and_damage_cost_nothing_but_time(tmp_path, tried):
    run = Run(tmp_path / "run", 40, random.Random(0), tried)
    for fault in SHORT:
        assert run.suffer(fault), f"complete before {fault}: num_steps is too small"
    run.complete(undisturbed(tmp_path / "calm", 40))
    assert set(run.faults) == set(SHORT) and len(run.faults) >= len(SHORT)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(4))
def test_a_hundred_kills_cost_nothing_but_time(tmp_path, tried, seed):
    rng = random.Random(seed)
    run = Run(tmp_path / "run", 400, rng, tried)
    kills = 0
    while kills < 25:
        fault = rng.choice((*KILLS, *KILLS, FLIP, TRUNCATE, TERMINATE, FULL_DISK))
        assert run.suffer(fault), "num_steps is too small"
        kills += fault in KILLS
    run.complete(undisturbed(tmp_path / "calm", 400))

"""An interrupted run must end as one that was not, to the bit, whatever interrupted it."""

import logging
import os
import random
import signal
import time
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from kinji.training import CheckpointError, Checkpoints, Interrupted
from kinji.training.checkpoint import COMMON

from .runs import OPTIONS, STEPS, Mixup, run, start

RANK = "rank0of1"
SCALED = {"precision": torch.float16, "micro_batch": 5}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def uninterrupted(optimizer: str, augmented: bool = False, **options):
    return run(optimizer, augmentation=Mixup() if augmented else None, **options)


def every_step(folder: Path, **options) -> Checkpoints:
    return Checkpoints(folder=folder, every_seconds=0, **options)


def stopped_after(steps: int, folder: Path, **options) -> Checkpoints:
    """Asked once a step; nothing is written but where the run stops."""
    answers = iter([False] * (steps - 1) + [True])
    return Checkpoints(folder=folder, interrupted=lambda: next(answers), **options)


@pytest.mark.parametrize("optimizer", OPTIONS)
@pytest.mark.parametrize("options", [{}, SCALED], ids=["plain", "scaled"])
@pytest.mark.parametrize("steps", [1, 7, STEPS - 1])  # within a reading, within an epoch
def test_a_run_that_was_told_to_stop_goes_on_to_the_bit(tmp_path, optimizer, options, steps):
    whole = uninterrupted(optimizer, augmented=True, **options)
    with pytest.raises(Interrupted, match=f"after {steps} of {STEPS} iterations"):
        run(optimizer, stopped_after(steps, tmp_path), augmentation=Mixup(), **options)
    torch.manual_seed(77)
    assert run(optimizer, Checkpoints(folder=tmp_path), augmentation=Mixup(), **options) == whole


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_leaves_a_checkpoint_and_stops(tmp_path, number):
    handler = signal.getsignal(number)
    _, readings = start("sgd", Checkpoints(folder=tmp_path))
    next(readings)  # after 3 steps
    os.kill(os.getpid(), number)
    with pytest.raises(Interrupted, match=f"after 4 of {STEPS} iterations"):
        list(readings)
    assert signal.getsignal(number) == handler
    assert run("sgd", Checkpoints(folder=tmp_path)) == uninterrupted("sgd")


def test_without_checkpoints_signals_are_left_alone():
    handler = signal.getsignal(signal.SIGTERM)
    _, readings = start("sgd")
    next(readings)
    assert signal.getsignal(signal.SIGTERM) == handler


def test_checkpoints_change_nothing(tmp_path):
    assert run("kfac", every_step(tmp_path)) == uninterrupted("kfac")


def test_a_finished_run_gives_its_readings_and_weights_again(tmp_path):
    whole = run("sgd", Checkpoints(folder=tmp_path))
    seconds = [reading.training_seconds for reading in whole[1]]
    weights, readings = run("sgd", stopped_after(1, tmp_path))  # not one step is taken
    assert (weights, readings) == whole and [reading.training_seconds for reading in readings] == seconds


def endlessly_killed(optimizer: str, folder: Path) -> None:
    torch.set_num_threads(1)
    run(optimizer, every_step(folder))


@pytest.mark.parametrize("optimizer", OPTIONS)
def test_kill_9_five_times_changes_nothing(tmp_path, optimizer):
    chance = random.Random(3)
    context = get_context("fork")  # torch runs on one thread here
    for stop in sorted(chance.sample(range(1, STEPS - 1), 5)):
        process = context.Process(target=endlessly_killed, args=(optimizer, tmp_path))
        process.start()
        while process.is_alive() and newest(tmp_path) < stop:
            time.sleep(chance.random() / 1000)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL and stop <= newest(tmp_path) < STEPS
    assert run(optimizer, every_step(tmp_path)) == uninterrupted(optimizer)


def newest(folder: Path) -> int:
    return max((int(file.stem) for file in folder.glob(f"0*.{COMMON}")), default=0)


def stop_at(steps: int, folder: Path) -> None:
    checkpoints = stopped_after(steps, folder)
    with pytest.raises(Interrupted):
        run("kfac", Checkpoints(folder=folder, every_seconds=0, interrupted=checkpoints.interrupted))


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip, lambda file: file.write_bytes(b""), Path.unlink])
@pytest.mark.parametrize("part", [COMMON, RANK])
def test_behind_a_damaged_checkpoint_the_one_before_is_taken(tmp_path, caplog, damage, part):
    stop_at(9, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        f"{k:09d}.{name}" for k in (8, 9) for name in (COMMON, RANK)
    ]
    damage(tmp_path / f"000000009.{part}")
    with caplog.at_level(logging.INFO):
        assert run("kfac", every_step(tmp_path)) == uninterrupted("kfac")
    assert "resumed at iteration 8" in caplog.text
    if damage is not Path.unlink:
        assert f"000000009.{part} is truncated or damaged: it is left out" in caplog.text


def test_with_no_checkpoint_whole_the_run_starts_over_and_says_so(tmp_path, caplog):
    stop_at(9, tmp_path)
    for file in tmp_path.iterdir():
        truncate(file)
    assert run("kfac", every_step(tmp_path)) == uninterrupted("kfac")
    assert "training starts over" in caplog.text
    assert {int(file.stem) for file in tmp_path.iterdir()} == {STEPS - 1, STEPS}


@pytest.mark.parametrize(
    ("options", "identity", "message"),
    [
        ({"batch_size": 10}, {"code": "a"}, "batch_size was 12, is 10"),
        ({}, {"code": "b"}, "code was a, is b"),
        ({"micro_batch": 6}, {"code": "a"}, "micro_batch was None, is 6"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, options, identity, message):
    with pytest.raises(Interrupted):
        run("sgd", stopped_after(2, tmp_path, identity={"code": "a"}))
    with pytest.raises(CheckpointError, match=message):
        run("sgd", Checkpoints(folder=tmp_path, identity=identity), **options)
    assert newest(tmp_path) == 2


def test_a_full_disk_is_logged_and_costs_no_step(tmp_path, caplog, monkeypatch):
    checkpoints = every_step(tmp_path / "full")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    assert run("sgd", checkpoints) == uninterrupted("sgd")
    assert "No space left on device" in caplog.text and not list((tmp_path / "full").iterdir())


def test_readings_are_kept_before_they_are_handed_out(tmp_path):
    _, readings = start("sgd", every_step(tmp_path))
    first = next(readings)
    readings.close()
    _, again = start("sgd", every_step(tmp_path))
    assert next(again) == first

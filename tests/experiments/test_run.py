"""A case from its parameters to its record: ranks, interruptions, the end of a job's time."""

import itertools
import os
import random
import re
import signal
import sys
import time
from datetime import datetime, timedelta
from multiprocessing import get_context
from pathlib import Path

import pytest

from kinji import cli
from kinji.errors import KinjiError
from kinji.experiments import context, resnet50_table, run, time_limit
from kinji.experiments.cases import Resnet50TableCase
from kinji.experiments.ranks import join, place
from kinji.records import fingerprint, read_record
from kinji.training import Interrupted

OPTIONS = {"optimizer": "kfac", "batch": 64, "epochs": 2, "lr": 0.04, "momentum": 0.7, "damping": 0.03}
OPTIONS |= {"folds": 2, "training_images": 192}
CASE = Resnet50TableCase(**OPTIONS)


def measure(out):
    run.run_case(CASE, out=out, device="cpu", threads=1, record_failure=True)
    return read_record(out)


def test_a_job_out_of_time_is_queued_again_and_ends_with_the_record_of_one_that_was_not(tmp_path, monkeypatch):
    monkeypatch.setenv("KINJI_CHECKPOINTS", str(tmp_path / "checkpoints"))
    whole = measure(tmp_path / "whole.json")
    queued = []
    monkeypatch.setattr(run, "requeue", lambda: queued.append(1))
    out = tmp_path / "record.json"
    for step in (1, 4):  # of each call; the first fold has 6 steps
        steps = itertools.count(1)
        monkeypatch.setattr(run, "nears_its_end", lambda steps=steps, step=step: lambda: next(steps) >= step)
        with pytest.raises(Interrupted, match="the same command goes on"):
            measure(out)
        assert not out.exists() and list((tmp_path / "checkpoints").rglob("*.common"))
    monkeypatch.undo()
    monkeypatch.setenv("KINJI_CHECKPOINTS", str(tmp_path / "checkpoints"))
    record = measure(out)
    assert fingerprint(record) == fingerprint(whole) and len(queued) == len(record.provenance["earlier_starts"]) == 2
    assert not list((tmp_path / "checkpoints").rglob("*.common")), "a finished case leaves no checkpoints"


def command(out: Path, seconds: float) -> None:
    """The command line, in a process group of its own, with checkpoints in every step and so long between steps."""
    os.setpgid(0, 0)
    os.dup2(os.open(out.parent / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), sys.stderr.fileno())
    os.environ |= {"KINJI_CHECKPOINTS": str(out.parent / "checkpoints"), "KINJI_CHECKPOINT_SECONDS": "0"}
    train_fold = resnet50_table.train_fold
    resnet50_table.train_fold = lambda *arguments: train_fold(*arguments[:-1], lambda step: time.sleep(seconds))
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]
    sys.argv = ["kinji", "resnet50-table", *flags, "--threads=1", f"--out={out}"]
    cli.main()


def steps_done(folder: Path) -> int:
    """Steps of both folds whose checkpoint is there; the first has 6."""
    newest = {file.parent.name: int(file.stem) for file in sorted(folder.rglob("0*.common"))}
    return sum(newest.values())


def test_kill_9_of_the_command_five_times_changes_no_number(tmp_path, monkeypatch):
    monkeypatch.setenv("KINJI_CHECKPOINTS", str(tmp_path / "whole"))
    chance, processes = random.Random(1), get_context("forkserver")
    out = tmp_path / "record.json"
    for stop in sorted(chance.sample(range(1, 12), 5)):
        process = processes.Process(target=command, args=(out, 0.02))
        process.start()
        while process.is_alive() and steps_done(tmp_path / "checkpoints") < stop:
            time.sleep(1e-3)
        time.sleep(chance.uniform(0, 0.03))  # within a step or a checkpoint
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL and not out.exists()
    process = processes.Process(target=command, args=(out, 0.0))
    process.start()
    process.join()
    assert (tmp_path / "log").read_text().count("resumed at iteration") >= 5
    assert process.exitcode == 0 and fingerprint(read_record(out)) == fingerprint(measure(tmp_path / "whole.json"))


def test_a_log_shows_steps_throughput_and_the_time_left_now_and_then(monkeypatch, capsys):
    """Steps of a second each: lines after five seconds, then, in a long run, ever more seldom."""
    clock = itertools.count()
    monkeypatch.setattr(context.time, "monotonic", lambda: next(clock) / 4)
    with context.Progress("title").steps("fold 0") as show:
        for step in range(1, 3001):
            show(step, 3000, f"epoch {step / 100:.2f} of 30")
    lines = capsys.readouterr().err.splitlines()
    assert 50 < len(lines) < 200
    assert re.fullmatch(r"title: fold 0, epoch 0\.\d\d of 30, 0:\d\d:\d\d left", lines[0])


SQUEUE = """#!/bin/sh
echo "$*" >> {folder}/asked
echo "{answer}"
"""


def slurm(folder, monkeypatch, answer):
    for name in ("squeue", "scontrol"):
        (folder / name).write_text(SQUEUE.format(folder=folder, answer=answer))
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_JOB_ID", "7")


@pytest.mark.parametrize(("left", "near"), [(time_limit.MARGIN_SECONDS + 60, False), (60, True)])
def test_the_end_of_the_job_is_seen_in_advance(tmp_path, monkeypatch, left, near):
    end = datetime.now() + timedelta(seconds=left)
    slurm(tmp_path, monkeypatch, end.isoformat(timespec="seconds"))
    assert time_limit.end_of_job() == pytest.approx(time.time() + left, abs=5)
    assert time_limit.nears_its_end()() is near
    time_limit.requeue()
    assert (tmp_path / "asked").read_text().splitlines()[-1] == "requeue 7"


def test_without_slurm_or_a_limit_there_is_no_end(tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert time_limit.end_of_job() is None and not time_limit.nears_its_end()()
    slurm(tmp_path, monkeypatch, "N/A")
    assert time_limit.end_of_job() is None
    monkeypatch.setenv("PATH", "/nowhere")
    assert time_limit.end_of_job() is None
    with pytest.raises(KinjiError, match="scontrol requeue 7"):
        time_limit.requeue()


def test_who_started_the_ranks(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    assert place() == (0, 1)
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert place() == (0, 1), "a batch script of many tasks is one process"
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setenv("SLURM_PROCID", "3")
    assert place() == (3, 4)
    with pytest.raises(KinjiError, match="2 ranks, but 4 processes were started"), join(2, "cpu"):
        pass

"""A case from its parameters to its record: ranks, interruptions, the end of a job's time."""

import itertools
import time
from datetime import datetime, timedelta

import pytest

from kinji.errors import KinjiError
from kinji.experiments import run, time_limit
from kinji.experiments.cases import Resnet50TableCase
from kinji.experiments.ranks import join, place
from kinji.records import fingerprint, read_record
from kinji.training import Interrupted

CASE = Resnet50TableCase(
    optimizer="kfac", batch=64, epochs=2, lr=0.04, momentum=0.7, damping=0.03, folds=2, training_images=192
)


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

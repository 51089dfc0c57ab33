"""Commands as a user types them; every mistake is one line and a non-zero exit."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kinji.records import read_record

ENVIRONMENT = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
TINY = ("int8-dgemm", "--n", "32", "--slices", "3", "--phi", "0.5", "--repetitions", "1", "--threads", "1")


def kinji(*words):
    return subprocess.run(
        [sys.executable, "-m", "kinji.cli", *words], env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )


def test_one_case_by_hand_leaves_one_record_with_provenance(repository):
    done = kinji(*TINY, "--out", "a.json")
    assert done.returncode == 0, done.stderr
    record = read_record(Path("a.json"))
    assert record.parameters["n"] == 32 and record.observations and record.error is None
    for key in ("source_hash", "versions", "cpu", "threads", "seed", "command", "finished", "machine", "device"):
        assert record.provenance[key] not in (None, "", {}), key


def test_a_case_of_many_parameters_leaves_a_record_named_by_those_that_were_given(repository):
    training = ("--optimizer", "sgd", "--batch", "64", "--epochs", "1", "--lr", "0.1", "--momentum", "0.5")
    done = kinji("resnet50-table", *training, "--threads", "1")
    assert done.returncode == 0, done.stderr
    (left,) = Path("results/by-hand/resnet50_table").iterdir()
    assert left.name == "optimizer~sgd_batch~64_epochs~1_lr~0.1_momentum~0.5.json"
    assert read_record(left).parameters["weight_decay"] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((*TINY, "--device", "cuda"), "--device cuda, but torch sees no CUDA device"),
        ((*TINY, "--device", "tpu"), "unknown device 'tpu'"),
        ((*TINY, "--threads", "4096"), "--threads 4096"),
        ((*TINY[:2], "-3", *TINY[3:]), "error"),
        (("figure", "int8_dgem"), "Did you mean 'int8_dgemm'"),
        (("figure", "int8_dgemm", "--scale", "smok"), "unknown scale 'smok'"),
        (
            ("figure", "int8_dgemm", "--machine", "cray-1"),
            "no records of int8_dgemm at scale smoke from machine cray-1",
        ),
        (("table", "int9"), "no experiment 'int9'"),
        (("notebook", "int9"), "no notebook 'int9'"),
        (("report",), "claims.csv is missing"),
    ],
)
def test_a_mistake_is_one_clear_line(repository, words, message):
    done = kinji(*words)
    assert done.returncode != 0
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not list(Path("results").rglob("*.json"))


def test_a_failed_case_leaves_its_error_if_asked_to(repository):
    done = kinji("int8-dgemm", "--n", "-3", "--threads", "1", "--out", "a.json", "--record-failure")
    assert done.returncode == 0 and "failed, the error is kept in a.json" in done.stderr
    assert read_record(Path("a.json")).error["traceback"].startswith("Traceback")


def test_a_truncated_record_is_named_and_nothing_is_lost(repository):
    folder = Path("results/smoke/int8_dgemm")
    assert kinji(*TINY, "--out", str(folder / "whole.json")).returncode == 0
    (folder / "cut.json").write_text((folder / "whole.json").read_text()[:100])
    done = kinji("figure", "int8_dgemm")
    assert done.returncode != 0 and "cut.json is not a whole JSON document" in done.stderr
    assert kinji("forget-failures").returncode == 0
    assert [path.name for path in folder.iterdir()] == ["whole.json"]


def test_outside_a_repository_it_says_where_to_go(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = kinji("claims")
    assert done.returncode != 0 and "is not inside a kinji repository" in done.stderr

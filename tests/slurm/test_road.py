"""`snakemake --profile slurm` on a real Slurm: the whole road, each kind of job, and what it checks beforehand."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from kinji.experiments.cases import case_name
from kinji.records import fingerprint, read_record
from kinji.workflow.config import load_config
from kinji.workflow.rules import flags

from .conftest import CASES, set_knobs

REPORT = ("--config", "scale=smoke", "--", "results/smoke/report.pdf")


@pytest.fixture(autouse=True)
def forget():
    load_config.cache_clear()
    yield
    load_config.cache_clear()


@pytest.mark.slurm_ci
def test_the_whole_road_ends_with_the_records_of_a_local_run(site):
    site.run(*REPORT)
    assert Path("results/smoke/report.pdf").stat().st_size and Path("figures/smoke/int8_dgemm.pdf").stat().st_size
    assert Path("results/smoke/claims.csv").read_text() and Path("results/smoke/tables/int8_dgemm.tex").exists()
    for case in map(case_name, CASES):
        words = [
            "kinji",
            "int8-dgemm",
            *flags("smoke", "int8_dgemm", case).split(),
            "--threads",
            "1",
            "--out",
            "l.json",
        ]
        subprocess.run(words, env=site.cluster.environment, check=True, capture_output=True)
        record = read_record(Path(f"results/smoke/int8_dgemm/{case}.json"))
        assert fingerprint(record) == fingerprint(read_record(Path("l.json")))
        assert record.provenance["slurm_node"] in ("n1", "n2", "n3", "n4") and record.provenance["slurm_job"]
    jobs = site.jobs()
    measured = {read_record(path).provenance["slurm_job"] for path in Path("results").rglob("n~*.json")}
    assert len(measured) == 1, "short cases share a job"
    assert set(jobs.values()) == {"COMPLETED"}

    _, output = site.run(*REPORT)
    assert "Nothing to be done" in output and site.jobs() == jobs, "what has its record is not submitted again"


def test_cases_that_share_a_job_ask_for_the_time_of_all_and_the_rest_of_one(site):
    run = site.start("--config", "scale=smoke", "--", "results/smoke/int8_dgemm.csv")
    try:
        deadline = time.monotonic() + 300
        while not (jobs := site.jobs()):
            assert time.monotonic() < deadline
            time.sleep(0.5)
        asked = site.cluster.ask("squeue", "-h", "-t", "all", "-j", ",".join(jobs), "-o", "%C %l %m")
        assert asked.split() == ["2", "10:00", "1000M"]
    finally:
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()


def test_each_kind_of_job_runs(site):
    set_knobs(setup="\"export TOY_SETUP='set up'\"")
    site.run("--config", "scale=smoke", "--", "check_site", "toy/gpus.txt", "toy/gpus_of_two_nodes.txt")
    ranks = {path.stem: json.loads(path.read_text())["ranks"] for path in Path("results/site").glob("*.json")}
    nodes = {kind: {row["slurm_node"] for row in rows} for kind, rows in ranks.items()}
    assert {kind: len(rows) for kind, rows in ranks.items()} == {
        "one_process": 1,
        "one_node": 2,
        "two_nodes": 2,
        "mpi": 2,
    }
    assert len(nodes["one_node"]) == 1 and len(nodes["two_nodes"]) == len(nodes["mpi"]) == 2
    assert Path("toy/gpus.txt").read_text().split() == ["0,1", "set", "up"]
    rows = [line.split() for line in Path("toy/gpus_of_two_nodes.txt").read_text().splitlines()]
    assert len({node for node, _ in rows}) == 2 and all(gpus in ("0", "1") for _, gpus in rows)


WRONG = {"account": '"$ACCOUNT"', "partition": "gpuu", "scratch": "/no/such/folder", "imagenet": "/tmp"}


@pytest.mark.parametrize(
    ("knobs", "messages"),
    [
        ({"account": '"unset"'}, ["account is 'unset': write yours"]),
        (
            WRONG,
            [
                "account is '$ACCOUNT': write yours",
                "partition is 'gpuu', but sinfo knows main",
                "scratch is '/no/such/folder': there is no such folder",
                "imagenet is '/tmp': there is no folder train",
            ],
        ),
    ],
)
def test_wrong_knobs_are_clear_errors_and_nothing_is_submitted(site, knobs, messages):
    set_knobs(**knobs)
    status, output = site.run("--config", "scale=smoke", "--", "toy/quick.txt", check=False)
    assert status == 1 and "nothing was submitted" in output
    assert all(message in output for message in messages), output
    assert not site.jobs()

"""`snakemake --profile slurm` on a real Slurm: the whole road, each kind of job, and what it checks beforehand."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from kinji.experiments.cases import case_name
from kinji.records import fingerprint, read_record
from kinji.workflow.config import load_config
from kinji.workflow.rules import flags

from .conftest import CASES, TINY, configure, set_knobs

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


TRAINING = {"batch": 64, "epochs": 1, "folds": 2, "training_images": 256}
SGD = {"optimizer": "sgd", "lr": 0.4, "momentum": 0.6}
KFAC = {"optimizer": "kfac", "lr": 0.04, "momentum": 0.7, "damping": 0.03}
EVERY_EXPERIMENT = {
    "int8_dgemm": [{"n": 64, **TINY}],
    "h2_scaling": [
        {"n": 512, "diagonal": "natural", "leaf": 64, "rank": 30, "tile": 128, "samples": 200}
        | {"repetitions": 1, "rank_tolerances": [1e-2]}
    ],
    "resnet50_table": [SGD | TRAINING, KFAC | TRAINING | {"ranks": 2}],
    "resnet50_tune": [{"optimizer": "sgd", "batch": 256, "epochs": 1, "lr": [0.4], "momentum": [0.4], "splits": [0]}],
    "step_breakdown": [{"network": "resnet18", "ranks": 2, "pixels": 32, "batch_per_rank": 2, "repetitions": 1}],
    "imagenet_race": [{"fabric": "abci"}],
}


def test_a_case_of_every_experiment_ends_with_what_a_local_run_gives(site, tmp_path_factory):
    configure(**EVERY_EXPERIMENT)
    here = tmp_path_factory.mktemp("local") / "repository"
    shutil.copytree(site.folder, here)
    targets = ("--config", "scale=smoke", "--", "results/smoke/report.pdf", "tune")
    site.run(*targets)
    local = subprocess.run(
        ["snakemake", "--cores", "2", "--nolock", *targets],
        cwd=here, env=site.cluster.environment, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert local.returncode == 0, local.stdout + local.stderr
    made, expected = outcome(site.folder), outcome(here)
    assert len(made) > len(EVERY_EXPERIMENT) and made == expected
    trained = [read_record(path) for path in Path("results/smoke/resnet50_table").glob("*ranks~2*.json")]
    assert len(trained[0].provenance["ranks"]) == 2, "each rank says what it ran on"


def outcome(folder):
    """What must be the same: the fingerprint of each record, and that there is each table, figure and report."""
    files = [path for top in ("results/smoke", "figures/smoke") for path in (folder / top).rglob("*") if path.is_file()]
    records = [path for path in files if path.parent.name in EVERY_EXPERIMENT and path.suffix == ".json"]
    return {str(path.relative_to(folder)): path in records and fingerprint(read_record(path)) for path in files}


INTERRUPTIONS = """
echo start >> starts
case $(wc -l < starts) in
  1 | 2) export KINJI_MARGIN_SECONDS=1e9 ;;
  3) truncate --size 1000 "$(find results/checkpoints -name '*.common' | sort | tail -n 1)" ;;
esac
"""


def test_training_near_its_time_limit_queues_itself_again_and_survives_a_damaged_checkpoint(site):
    case = KFAC | TRAINING | {"ranks": 2}
    configure(resnet50_table=[case])
    Path("interruptions.sh").write_text(INTERRUPTIONS)
    set_knobs(gpus_per_node=1, setup='"source ./interruptions.sh"')
    record = f"results/smoke/resnet50_table/{case_name(case)}.json"
    site.run("--config", "scale=smoke", "--", record)
    [job] = site.jobs()
    assert "Restarts=2" in site.cluster.ask("scontrol", "show", "job", job), "always the same job"
    log = next(Path("logs/smoke/resnet50_table").glob("*.log")).read_text()
    assert "truncated or damaged" in log and "resumed at iteration 1 " in log
    provenance = read_record(Path(record)).provenance
    assert len({rank["slurm_node"] for rank in provenance["ranks"]}) == 2, "two nodes"
    assert len(provenance["earlier_starts"]) == 2

    torchrun = ["torchrun", "--standalone", "--nproc-per-node", "2", "--no-python", "kinji", "resnet50-table"]
    words = [*flags("smoke", "resnet50_table", case_name(case)).split(), "--threads", "1", "--out", "whole.json"]
    subprocess.run([*torchrun, *words], env=site.cluster.environment, check=True, capture_output=True, timeout=600)
    whole = read_record(Path("whole.json"))
    assert "earlier_starts" not in whole.provenance and fingerprint(read_record(Path(record))) == fingerprint(whole)


def test_slurm_accepts_the_script_of_a_job(site):
    configure(resnet50_table=[KFAC | TRAINING | {"ranks": 2}])
    set_knobs(gpus_per_node=1)
    words = ("kinji", "job-script", "resnet50_table", "--scale", "smoke")
    script = subprocess.run(words, env=site.cluster.environment, check=True, capture_output=True, text=True).stdout
    tested = subprocess.run(
        ["sbatch", "--test-only"], input=script, env=site.cluster.environment, capture_output=True, text=True
    )
    assert tested.returncode == 0 and "using 2 processors on nodes n[1-2]" in tested.stderr, script + tested.stderr


def test_cases_that_share_a_job_ask_for_the_time_of_all_and_the_rest_of_one(site):
    run = site.start("--config", "scale=smoke", "--", "results/smoke/int8_dgemm.csv")
    try:
        deadline = time.monotonic() + 300
        while not (jobs := site.jobs()):
            assert time.monotonic() < deadline
            time.sleep(0.5)
        asked = site.cluster.ask("squeue", "-h", "-t", "all", "-j", ",".join(jobs), "-o", "%C %l %m")
        assert asked.split() == ["1", "1:00:00", "1000M"]
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

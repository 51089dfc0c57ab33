"""The road itself, on a copy of the repository: real Snakemake, real experiments, at a size of seconds."""

import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import yaml

from kinji.records import fingerprint, read_record

# The commands of this environment, whatever the PATH of whoever runs the tests.
ENVIRONMENT = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
TINY = {"n": 64, "slices": [3, 8], "moduli": [8, 14], "phi": [0.5], "repetitions": 1}


def configure(cases):
    for scale in ("smoke", "paper"):
        Path(f"config/{scale}.yaml").write_text(yaml.safe_dump({"experiments": {"int8_dgemm": cases}}))


def snakemake(*words, check=True):
    command = ["snakemake", "--cores", "2", "--nolock", "--rerun-incomplete", "--keep-going", *words]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=250)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def planned(*words):
    output = snakemake("-n", *words).stdout
    return {line.split()[0] for line in output.splitlines() if line[:1].isalpha() and line.split()[-1].isdigit()}


def test_a_failed_case_costs_neither_the_report_nor_the_others(repository):
    configure([TINY, {**TINY, "n": -1}])
    snakemake()
    assert Path("results/smoke/report.pdf").stat().st_size and Path("results/smoke/report.html").stat().st_size
    assert "n~-1" in Path("logs/smoke/collect/int8_dgemm.log").read_text()
    assert "int8_dgemm" in Path("results/smoke/run.json").read_text()
    assert read_record(Path("results/smoke/int8_dgemm/n~64_repetitions~1.json")).error is None
    failed = Path("results/smoke/int8_dgemm/n~-1_repetitions~1.json")
    assert read_record(failed).error["message"] in Path("results/smoke/run.json").read_text()

    snakemake("--report", "report.zip")
    with zipfile.ZipFile("report.zip") as bundle:
        pages = b"".join(bundle.read(name) for name in bundle.namelist())
    assert b"error against slices and moduli" in pages and b"Claims" in pages, "captions and categories are there"

    assert planned() == set(), "a second run has nothing to do"
    subprocess.run(["kinji", "forget-failures"], env=ENVIRONMENT, check=True)
    assert not failed.exists() and "measure_int8_dgemm" in planned(), "the failed case, and no other, is tried again"


def test_a_changed_figure_script_redraws_and_measures_nothing(repository):
    configure([TINY])
    snakemake("figures/smoke/int8_dgemm.pdf")
    script = Path("figures/int8_dgemm.py")
    script.write_text(script.read_text() + "\n")
    assert planned("figures/smoke/int8_dgemm.pdf") == {"draw_figure", "total"}


def test_killed_anywhere_and_started_again_it_ends_with_the_same_records(repository):
    configure([TINY, {**TINY, "n": 65}, {**TINY, "n": 66}])
    table = "results/smoke/int8_dgemm.csv"
    for delay in (6, 9):
        run = subprocess.Popen(
            ["snakemake", "--cores", "1", "--nolock", "--rerun-incomplete", table],
            env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        time.sleep(delay)
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        finished = {path: fingerprint(read_record(path)) for path in Path("results").rglob("n~*.json")}
    snakemake(table)
    ended = {path: fingerprint(read_record(path)) for path in Path("results").rglob("n~*.json")}
    assert len(ended) == 3 and finished.items() <= ended.items()
    snakemake("--forceall", table)
    assert ended == {path: fingerprint(read_record(path)) for path in Path("results").rglob("n~*.json")}
    assert not list(Path("results").rglob(".*.json.*")), "no half-written record is left"


def test_the_slurm_profile_plans_the_paper_scale_without_slurm(repository):
    done = subprocess.run(["snakemake", "--profile", "slurm", "-n"], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "results/paper/report.pdf" in done.stdout + done.stderr
    words = ["snakemake", "--profile", "slurm", "-n", "--config", "scale=smoke"]
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True)
    assert "results/smoke/report.pdf" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "scale=smok"], "unknown scale 'smok'"),
        (["--config", "skale=smoke"], "knows only `scale`, got skale"),
    ],
)
def test_a_wrong_command_line_is_one_clear_message(repository, words, message):
    done = snakemake("-n", *words, check=False)
    assert done.returncode != 0 and message in done.stdout + done.stderr

"""The script of the largest case is what the profile, the configuration and the rule make of it."""

import subprocess
from pathlib import Path

import pytest
import yaml

from .test_dag import ENVIRONMENT

CASE = {"optimizer": "sgd", "batch": 64, "epochs": 1, "lr": 0.4, "momentum": 0.6}
CONFIG = {
    "device": "cuda",
    "gpus": 1,
    "threads": 4,
    "requests": {"resnet50_table": {"runtime_minutes": 600, "memory_megabytes": 9000}},
    "experiments": {"resnet50_table": [CASE | {"ranks": ranks} for ranks in (1, 8, 32, 16)]},
}


def script(*words):
    Path("config/paper.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False))
    command = ["kinji", "job-script", "resnet50_table", *words]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    return done.stdout


def asked(text):
    return {line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")}


def test_the_largest_case_takes_whole_nodes_and_is_started_by_srun(repository):
    text = script()
    assert {"--nodes=4", "--gpus=32", "--ntasks=32", "--cpus-per-task=4", "-t 600", "--mem 9000"} <= asked(text)
    command = text.splitlines()[-1]
    assert command.startswith("srun --nodes 4 --ntasks 32 ") and " kinji resnet50-table " in command
    assert "--ranks 32" in command and "--threads 4" in command
    assert not Path("results/paper").exists()


@pytest.mark.parametrize(
    ("ranks", "start", "cores"),
    [(1, "kinji", 4), (8, "torchrun --standalone --nproc-per-node 8 --no-python kinji", 32)],
)
def test_ranks_of_one_node_are_one_task(repository, ranks, start, cores):
    text = script("--case", f"optimizer~sgd_batch~64_epochs~1_lr~0.4_momentum~0.6_ranks~{ranks}")
    assert {"--nodes=1", f"--gpus={ranks}", f"--cpus-per-task={cores}"} <= asked(text)
    assert text.splitlines()[-1].strip().startswith(f"{start} resnet50-table ")

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from kinji.cli import app
from kinji.errors import KinjiError
from kinji.workflow import plan
from kinji.workflow.config import load_config

from .test_config import edit

CONFIG = {
    "threads": 4,
    "gpus": 1,
    "runtime_minutes": 30,
    "requests": {"step_breakdown": {"runtime_minutes": 120, "memory_megabytes": 9000}},
    "experiments": {
        "int8_dgemm": [{"n": 8}, {"n": 16}, {"n": 24}],
        "step_breakdown": [{"ranks": 1}, {"ranks": 8}],
        "resnet50_table": [
            {"optimizer": "sgd", "batch": 1, "epochs": 1, "lr": 1.0, "momentum": 0.5, "images": "imagenet"}
        ],
    },
}


@pytest.fixture(autouse=True)
def forget():
    load_config.cache_clear()
    yield
    load_config.cache_clear()


def test_hours_and_gpus_add_up_over_cases_and_ranks(repository):
    edit(lambda content: (content.clear(), content.update(CONFIG)))
    rows = {row.experiment: row for row in plan.plan("smoke")}
    assert rows["int8_dgemm"].gpu_hours == 1.5 and rows["int8_dgemm"].gpus == 1 and rows["int8_dgemm"].cases == 3
    assert rows["step_breakdown"].gpu_hours == 2 * (1 + 8) and rows["step_breakdown"].gpus == 8
    assert rows["step_breakdown"].hours == 2 and rows["step_breakdown"].memory_gigabytes == 9
    assert plan.needs_imagenet("smoke")
    output = CliRunner().invoke(app, ["plan", "--scale", "smoke"]).output
    assert "20" in output and "ImageNet besides" in output


def test_a_misspelt_request_names_the_nearest(repository):
    edit(lambda content: content.update(requests={"int8_dgemm": {"runtime_minute": 1}}))
    with pytest.raises(KinjiError, match=r"unknown key 'runtime_minute' at requests.int8_dgemm. .*'runtime_minutes'"):
        load_config("smoke")
    load_config.cache_clear()
    edit(lambda content: content.update(requests={"int8_gemm": {}}))
    with pytest.raises(KinjiError, match=r"unknown key 'int8_gemm' at requests. .*'int8_dgemm'"):
        load_config("smoke")


def test_every_scale_stays_what_it_was_without_requests(repository):
    given = yaml.safe_load(Path("config/paper.yaml").read_text())
    assert {row.experiment for row in plan.plan("paper")} == set(given["experiments"])

from pathlib import Path

import pandas as pd
import pytest

from kinji.experiments.cases import ImagenetRaceCase
from kinji.experiments.context import Context, Progress
from kinji.experiments.imagenet_race import measure, measured_steps

CONTEXT = Context("cpu", 1, Progress("test"))
STEP = {"quantity": "step", "rank": 0, "optimizer": "SGD", "step_seconds": 0.5}


def test_a_record_holds_modelled_steps_their_error_and_those_measured(repository):
    table = pd.DataFrame(measure(ImagenetRaceCase(), CONTEXT))
    modelled = table[table["quantity"] == "modelled step"]
    fresh = modelled[modelled["refreshed"] == 1].pivot(index="gpus", columns="optimizer", values="step_seconds")
    stale = modelled[modelled["refreshed"] < 1].set_index("gpus")["step_seconds"]
    assert (fresh["SGD"] < fresh["K-FAC"]).all()
    assert stale.index.tolist() == [128, 256, 512, 1024] and (stale < fresh["K-FAC"].reindex(stale.index)).all()
    assert (modelled["batch"] == 32 * modelled["gpus"]).all()
    assert table.set_index("quantity").loc["model error", "relative_error"] < 0.2
    assert set(table["quantity"]) == {"modelled step", "model error", "measured step"}


def test_whole_steps_of_this_run_are_taken_and_no_others(repository, put_record):
    rows = [STEP | {"parts_timed": False}, STEP | {"parts_timed": True}, STEP | {"parts_timed": False, "rank": 1}]
    case = {"network": "resnet50", "ranks": 2, "batch_per_rank": 16, "pixels": 64}
    put_record(Path("results/smoke/step_breakdown/a.json"), rows, **case)
    (step,) = measured_steps()
    assert (step["gpus"], step["batch"], step["step_seconds"], step["measured_on"]) == (2, 32, 0.5, "test-machine")


def test_without_measured_steps_the_model_stands_alone(repository, put_record):
    failed = {"message": "boom", "traceback": ""}
    put_record(Path("results/smoke/step_breakdown/a.json"), [], error=failed, network="resnet50")
    assert list(measured_steps()) == []


def test_an_unknown_fabric_is_refused():
    with pytest.raises(ValueError, match="no fabric 'abcd'"):
        list(measure(ImagenetRaceCase(fabric="abcd"), CONTEXT))

from dataclasses import replace

import pandas as pd
import pytest
import torch

from kinji.errors import KinjiError
from kinji.experiments import resnet50_table
from kinji.experiments.cases import Resnet50TableCase
from kinji.experiments.context import Context, Progress
from kinji.experiments.resnet50_table import first_at_target, measure, new_model
from kinji.training import Reading

CONTEXT = Context("cpu", 1, Progress("test"))
SGD = Resnet50TableCase(optimizer="sgd", batch=128, epochs=3, lr=0.2, momentum=0.9, training_images=256, folds=4)
KFAC = replace(SGD, optimizer="kfac", lr=0.02, damping=0.01, folds=2)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def table():
    return pd.DataFrame(measure(SGD, CONTEXT))


def test_every_fold_has_its_curve_its_targets_and_its_accuracy(table):
    counts = table.groupby("fold")["quantity"].value_counts().unstack()
    assert (counts == pd.Series({"accuracy": 1, "curve": 3, "target": 2})).all().all()
    assert len(counts) == 4


def test_the_folds_together_test_every_image_once(table):
    accuracy = table[table["quantity"] == "accuracy"]
    assert accuracy["test_images"].sum() == 1797
    assert (accuracy["test_correct"] <= accuracy["test_images"]).all()
    assert accuracy["test_correct"].sum() > 3 * 180  # three times chance


def test_iterations_are_those_of_the_batch_size(table):
    curve = table[table["quantity"] == "curve"]
    assert (curve["iteration"] == 2 * curve["epoch"]).all()


def test_a_target_out_of_reach_is_censored_at_the_budget():
    rows = pd.DataFrame(measure(replace(SGD, target_accuracy=1.1, target_loss=100.0), CONTEXT))
    targets = rows[rows["quantity"] == "target"].set_index("target")
    missed, reached = targets.loc["accuracy"], targets.loc["loss"]
    assert not missed["reached"].any() and (missed["epochs_to_target"] == 3).all()
    assert reached["reached"].all() and (reached["iterations_to_target"] == 2).all()


def test_the_first_reading_at_a_target_counts():
    losses, accuracies = (0.9, 0.6, 0.7, 0.5), (0.90, 0.96, 0.97, 0.99)
    case = replace(SGD, target_accuracy=0.97, target_loss=0.6)
    readings = [
        Reading(epoch=k, iteration=2 * k, training_loss=0.0, validation_loss=loss, validation_accuracy=accuracy)
        for k, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True), start=1)
    ]
    assert first_at_target(case, readings) == {"accuracy": readings[2], "loss": readings[1]}
    assert first_at_target(case, []) == {"accuracy": None, "loss": None}


@pytest.mark.parametrize("case", [replace(SGD, folds=2), KFAC], ids=["sgd", "kfac"])
def test_all_but_the_time_is_reproducible_to_the_bit(case):
    first, second = (pd.DataFrame(measure(case, CONTEXT)).drop(columns="training_seconds") for _ in range(2))
    pd.testing.assert_frame_equal(first, second, check_exact=True)


def test_the_optimizers_start_from_the_same_weights():
    for ours, theirs in zip(new_model(SGD, 1).parameters(), new_model(KFAC, 1).parameters(), strict=True):
        assert torch.equal(ours, theirs)
    for other in (new_model(SGD, 1), new_model(replace(SGD, seed=7), 0)):
        assert not torch.equal(new_model(SGD, 0).classifier.weight, other.classifier.weight)


def test_the_test_part_is_looked_at_once_after_training(monkeypatch):
    looked = []
    evaluate = resnet50_table.evaluate
    monkeypatch.setattr(
        resnet50_table, "evaluate", lambda model, images: (looked.append(len(images)), evaluate(model, images))[1]
    )
    list(measure(replace(SGD, folds=2, epochs=1), CONTEXT))
    assert looked == [899, 898]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"images": "imagenet"}, "set `data_path` of the case in config/"),
        ({"images": "imagenet", "data_path": "/data"}, "arrives with a later version"),
        ({"optimizer": "kfac"}, "damping"),
        ({"damping": 0.1}, "damping"),
    ],
)
def test_a_case_that_cannot_be_run_says_why(wrong, message):
    with pytest.raises(KinjiError, match=message):
        list(measure(replace(SGD, **wrong), CONTEXT))


def test_a_batch_larger_than_the_training_part_is_refused():
    with pytest.raises(ValueError, match=r"batch_size must lie in 1\.\.256"):
        list(measure(replace(SGD, batch=512), CONTEXT))


def test_a_run_that_diverges_says_what_to_lower():
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        list(measure(replace(SGD, lr=1e30), CONTEXT))

from dataclasses import replace

import pandas as pd
import pytest
import torch

from kinji.errors import KinjiError
from kinji.experiments import resnet50_table
from kinji.experiments.cases import Resnet50TableCase
from kinji.experiments.context import Context, Progress
from kinji.experiments.resnet50_table import first_at_target, measure
from kinji.experiments.resnet50_table.checks import check
from kinji.experiments.resnet50_table.parts import load_parts
from kinji.experiments.resnet50_table.training import new_model, new_optimizer, new_schedule
from kinji.training import Reading
from kinji.training.procedural import write_folders

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


ABLATIONS = {"fisher": "sampled", "batch_norm": "full", "rescaling": "published", "momentum_rule": "released"}
SHORT = replace(KFAC, epochs=1)


def final_weights(case):
    rows = pd.DataFrame(measure(case, CONTEXT))
    return rows[rows["quantity"] == "accuracy"]["weights_sha256"].tolist()


@pytest.mark.parametrize("option", ABLATIONS)
def test_each_option_changes_the_training(option):
    ours, theirs = final_weights(SHORT), final_weights(replace(SHORT, **{option: ABLATIONS[option]}))
    assert all(one != other for one, other in zip(ours, theirs, strict=True))


def test_adaptive_statistics_leave_some_of_the_bytes():
    left = {}
    for kind in ("fresh", "adaptive"):
        rows = pd.DataFrame(measure(replace(KFAC, epochs=6, statistics=kind), CONTEXT))
        sums = rows[rows["quantity"] == "statistics"][["formed_bytes", "every_step_bytes"]].sum()
        left[kind] = sums["formed_bytes"] / sums["every_step_bytes"]
    assert left["fresh"] == 1 and 0.1 < left["adaptive"] < 1


@pytest.mark.parametrize("optimizer", ["lars", "rmsprop-sgd", "adam", "adamw"])
def test_every_rival_goes_through_the_same_loop(optimizer):
    rows = pd.DataFrame(measure(replace(SGD, optimizer=optimizer, lr=1e-3, folds=2, epochs=1), CONTEXT))
    assert rows.groupby("quantity").size().to_dict() == {"accuracy": 2, "curve": 2, "target": 4}


def test_procedural_images_are_others_in_each_fold():
    case = replace(SGD, images="procedural", training_images=100, held_out_images=50, pixels=8, network="resnet20")
    first, again, second = (load_parts(case, fold, CONTEXT) for fold in (0, 0, 1))
    assert [len(part) for part in (first.train, first.validation, first.test)] == [100, 50, 50]
    assert torch.equal(first.train.pixels_NCHW, again.train.pixels_NCHW)
    assert not torch.equal(first.train.pixels_NCHW, second.train.pixels_NCHW)
    rows = pd.DataFrame(measure(replace(case, batch=50, folds=2, epochs=1), CONTEXT))
    assert rows[rows["quantity"] == "accuracy"]["test_images"].tolist() == [50, 50]


def test_a_folder_of_images_is_trained_on_as_imagenet_is(tmp_path):
    write_folders(tmp_path, {"train": 100, "test": 100}, size=24)
    case = replace(SGD, images="imagenet", data_path=str(tmp_path), pixels=16, network="resnet20", batch=50, folds=1)
    rows = pd.DataFrame(measure(replace(case, epochs=1), CONTEXT))
    assert rows[rows["quantity"] == "accuracy"]["test_images"].tolist() == [100]


def test_a_preset_brings_the_whole_recipe():
    published = {"batch": 4096, "epochs": 35, "lr": 8.18e-3, "momentum": 0.997, "damping": 2.5e-4}
    case = replace(KFAC, preset="sp-ngd-4096", **published)
    check(case)
    parts = load_parts(KFAC, 0, CONTEXT)
    optimizer = new_optimizer(case, new_model(case, parts, 0), parts, CONTEXT)
    assert (optimizer.statistics_interval, optimizer.rescale_weights) == ("adaptive", "published")
    assert optimizer.param_groups[0]["damping"] == 2.5e-4
    assert (new_schedule(case).power, new_schedule(case).start_epoch) == (11, 1)


def test_the_optimizers_start_from_the_same_weights():
    parts = load_parts(SGD, 0, CONTEXT)
    ours, theirs = new_model(SGD, parts, 1), new_model(KFAC, parts, 1)
    assert all(torch.equal(*pair) for pair in zip(ours.parameters(), theirs.parameters(), strict=True))
    for other in (ours, new_model(replace(SGD, seed=7), parts, 0)):
        assert not torch.equal(new_model(SGD, parts, 0).classifier.weight, other.classifier.weight)


def test_the_test_part_is_looked_at_once_after_training(monkeypatch):
    looked = []
    evaluate = resnet50_table.evaluate
    monkeypatch.setattr(
        resnet50_table,
        "evaluate",
        lambda model, images, **ranks: (looked.append(len(images)), evaluate(model, images))[1],
    )
    list(measure(replace(SGD, folds=2, epochs=1), CONTEXT))
    assert looked == [899, 898]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"images": "imagenet"}, "set `data_path` of the case in config/"),
        ({"optimizer": "kfac"}, "damping"),
        ({"damping": 0.1}, "damping"),
        ({"fisher": "sampled", "statistics": "adaptive"}, "`fisher`, `statistics` belong to the optimizer kfac"),
        ({"preset": "sp-ngd-4097"}, "unknown preset 'sp-ngd-4097'; known: sp-ngd-4096"),
        ({"preset": "goyal-8192"}, "has {'batch': 8192, 'epochs': 90, 'lr': 3.2}"),
        ({"preset": "goyal-8192", "weight_decay": 0.1}, "sets `weight_decay`; leave them out"),
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

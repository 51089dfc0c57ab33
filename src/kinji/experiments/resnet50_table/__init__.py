"""Epochs, iterations and accuracy of K-FAC beside first-order optimizers for growing batch sizes (Osawa et al. 2019).

The published table trains ResNet-50 on ImageNet. At the smaller scales a residual network with BatchNorm learns
scikit-learn's handwritten digits, or procedural images. Folds are independent repetitions: of the digits five
stratified ones, so that every image is tested once by a network that has not seen it; of procedural images sets of
their own; of ImageNet other weights. Targets are read on a validation part. The test part is looked at once, after the
last epoch.

All optimizers go through the same loop with a learning rate that falls linearly to zero; the momentum of K-FAC falls
with the rate (Osawa et al. 2020, sec. 6.2), unless its rule is the released one. A preset brings its own schedule.
Files: `parts` (of the images) -> `training` (of one fold) -> here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict

from torch import nn

from kinji.experiments.cases import Resnet50TableCase
from kinji.experiments.context import Context
from kinji.experiments.resnet50_table.checks import check
from kinji.experiments.resnet50_table.parts import Parts, load_parts
from kinji.experiments.resnet50_table.training import new_model, new_optimizer, shown, statistics_bytes, train_fold
from kinji.training import Reading, evaluate

Row = dict[str, int | float | str | bool]


def measure(case: Resnet50TableCase, context: Context) -> Iterator[Row]:
    """Train one network a fold.

    Yields
    ------
    dict
        A ``quantity`` of a fold: "curve", one row a reading; "target", one row for each target, with ``reached`` false
        and the whole budget where a run never got there; "accuracy", one row, on the test part; of K-FAC "statistics",
        the bytes that were formed, and those of forming every one in every step, both as they travel between ranks.

    Raises
    ------
    KinjiError
        If the options of the case do not go together.
    """
    check(case)
    for fold in range(case.folds):
        yield from ({"fold": fold, **row} for row in measure_fold(case, load_parts(case, fold, context), fold, context))


def measure_fold(case: Resnet50TableCase, parts: Parts, fold: int, context: Context) -> Iterator[Row]:
    """Train on one fold and yield its rows."""
    model = new_model(case, parts, fold).to(context.device)
    optimizer = new_optimizer(case, model, parts, context)
    with context.progress.steps(f"fold {fold}") as show:
        readings = list(train_fold(case, model, optimizer, parts, fold, context, shown(show)))
    for reading in readings:
        yield {"quantity": "curve", **asdict(reading)}
    for target, first in first_at_target(case, readings).items():
        last = first or readings[-1]
        times = {"epochs_to_target": last.epoch, "iterations_to_target": last.iteration}
        yield {"quantity": "target", "target": target, "reached": first is not None, **times}
    _, correct = evaluate(model, parts.test, communicator=context.communicator)
    yield {
        "quantity": "accuracy",
        "test_correct": correct,
        "test_images": len(parts.test),
        "training_seconds": readings[-1].training_seconds,
        "weights_sha256": weights_hash(model),
    }
    if case.optimizer == "kfac":
        formed, every_step = statistics_bytes(optimizer)
        yield {"quantity": "statistics", "formed_bytes": formed, "every_step_bytes": every_step}


def first_at_target(case: Resnet50TableCase, readings: list[Reading]) -> dict[str, Reading | None]:
    """Return the first reading at each target on the validation part, or None."""
    return {
        "accuracy": next((r for r in readings if r.validation_accuracy >= case.target_accuracy), None),
        "loss": next((r for r in readings if r.validation_loss <= case.target_loss), None),
    }


def weights_hash(model: nn.Module) -> str:
    """Return the SHA-256 of all weights and running statistics."""
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()

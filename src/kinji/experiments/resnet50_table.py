"""Epochs, iterations and accuracy of K-FAC beside momentum SGD for growing batch sizes (Osawa et al. 2019, table 2).

The published table trains ResNet-50 on ImageNet. At the smaller scales a small residual network with BatchNorm learns
scikit-learn's handwritten digits: five stratified folds, so that every image is tested once by a network that has not
seen it, and in each a validation part of the other images, on which the targets are read. The test part is looked at
once, after the last epoch. Both optimizers go through the same loop with a learning rate that falls linearly to zero;
the momentum of SGD is constant, that of K-FAC falls with the rate (Osawa et al. 2020, sec. 6.2).

``--device cuda`` has not yet been run on a GPU.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from kinji.errors import KinjiError
from kinji.experiments.cases import Resnet50TableCase, sources
from kinji.experiments.context import Context
from kinji.records.provenance import source_hash
from kinji.training import (
    Checkpoints,
    Fold,
    Reading,
    ResidualNetwork,
    Schedule,
    build_optimizer,
    digits_fold,
    evaluate,
    scale_batch_norm_momentum,
    train,
)

READING_IMAGES = 256
"""Images between two readings of the validation part, or a batch if that is more."""

Row = dict[str, int | float | str | bool]


def measure(case: Resnet50TableCase, context: Context) -> Iterator[Row]:
    """Train one network a fold.

    Yields
    ------
    dict
        A ``quantity`` of a fold: "curve", one row a reading; "target", one row for each target, with ``reached`` false
        and the whole budget where a run never got there; "accuracy", one row, on the test part.

    Raises
    ------
    KinjiError
        If the case asks for ImageNet, or has a damping too many or too few.
    """
    check(case)
    for fold in range(case.folds):
        parts = digits_fold(fold, training_images=case.training_images, folds=case.folds, seed=case.seed)
        yield from ({"fold": fold, **row} for row in measure_fold(case, parts.to(context.device), fold, context))


def measure_fold(case: Resnet50TableCase, parts: Fold, fold: int, context: Context) -> Iterator[Row]:
    """Train on one fold and yield its rows."""
    model = new_model(case, fold).to(context.device)
    readings = list(context.progress.track(train_fold(case, model, parts, fold, context), f"fold {fold}, readings"))
    for reading in readings:
        yield {"quantity": "curve", **asdict(reading)}
    for target, first in first_at_target(case, readings).items():
        last = first or readings[-1]
        times = {"epochs_to_target": last.epoch, "iterations_to_target": last.iteration}
        yield {"quantity": "target", "target": target, "reached": first is not None, **times}
    _, correct = evaluate(model, parts.test)
    yield {
        "quantity": "accuracy",
        "test_correct": correct,
        "test_images": len(parts.test),
        "training_seconds": readings[-1].training_seconds,
        "weights_sha256": weights_hash(model),
    }


def weights_hash(model: nn.Module) -> str:
    """Return the SHA-256 of all weights and running statistics."""
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def check(case: Resnet50TableCase) -> None:
    """Raise `KinjiError` if the case cannot be run by this version."""
    if case.images == "imagenet" and case.data_path is None:
        raise KinjiError(
            "resnet50_table on ImageNet needs its folder: set `data_path` of the case in config/<scale>.yaml "
            "(--data-path by hand)."
        )
    if case.images == "imagenet":
        raise KinjiError(
            "resnet50_table: training on ImageNet arrives with a later version; until then set `images: digits`."
        )
    if (case.optimizer == "kfac") != (case.damping is not None):
        raise KinjiError(
            "resnet50_table: `damping` belongs to the optimizer kfac, which needs it, and to no other; "
            f"got optimizer {case.optimizer} and damping {case.damping}."
        )


def new_model(case: Resnet50TableCase, fold: int) -> nn.Module:
    """Return the network of a fold; both optimizers start from the same weights."""
    torch.manual_seed(case.seed + fold)
    model = ResidualNetwork()
    scale_batch_norm_momentum(model, case.batch)
    return model


def train_fold(
    case: Resnet50TableCase, model: nn.Module, parts: Fold, fold: int, context: Context
) -> Iterator[Reading]:
    """Train on one fold by the hyperparameters of the case."""
    # without a running average of the statistics, as published
    kfac_options: dict[str, Any] = (
        {}
        if case.damping is None
        else {"damping": case.damping, "statistics_decay": 0.0, "communicator": context.communicator}
    )
    optimizer = build_optimizer(case.optimizer, model, lr=case.lr, momentum=case.momentum, **kfac_options)
    schedule = Schedule(
        peak_rate=case.lr,
        peak_momentum=case.momentum,
        end_epoch=case.epochs,
        coupling="proportional" if case.optimizer == "kfac" else "constant",
    )
    return train(
        model,
        optimizer,
        schedule,
        training=parts.train,
        validation=parts.validation,
        epochs=case.epochs,
        batch_size=case.batch,
        read_every=max(1, READING_IMAGES // case.batch),
        seed=case.seed + fold,
        communicator=context.communicator,
        checkpoints=_checkpoints(case, fold, context),
    )


def _checkpoints(case: Resnet50TableCase, fold: int, context: Context) -> Checkpoints | None:
    if context.checkpoints is None:
        return None
    return Checkpoints(
        folder=context.checkpoints / f"fold{fold}",
        identity={"case": repr(case), "source": source_hash(sources(case.experiment))},
        interrupted=context.out_of_time,
    )


def first_at_target(case: Resnet50TableCase, readings: list[Reading]) -> dict[str, Reading | None]:
    """Return the first reading at each target on the validation part, or None."""
    return {
        "accuracy": next((r for r in readings if r.validation_accuracy >= case.target_accuracy), None),
        "loss": next((r for r in readings if r.validation_loss <= case.target_loss), None),
    }

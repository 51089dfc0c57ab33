"""One network, trained on one fold by the hyperparameters of the case."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from kinji.experiments.cases import Resnet50TableCase, sources
from kinji.experiments.context import Context
from kinji.experiments.resnet50_table.parts import Parts
from kinji.kfac import KFAC
from kinji.kfac.packing import packed_lengths
from kinji.records.provenance import source_hash
from kinji.training import (
    PRESETS,
    Checkpoints,
    Reading,
    Schedule,
    Step,
    build_model,
    build_optimizer,
    scale_batch_norm_momentum,
    train,
)

READING_IMAGES = 256
"""Digits between two readings of the validation part, or a batch if that is more; of other images, an epoch's."""
LABEL_SMOOTHING = 0.1
AKIBA_EPOCHS = 90
"""Of the training that the constants of RMSprop's warm-up were chosen for; a shorter one warms up in proportion."""
CHECKPOINT_SECONDS = 600.0
"""Between two checkpoints, if ``$KINJI_CHECKPOINT_SECONDS`` says no other."""
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def new_model(case: Resnet50TableCase, parts: Parts, fold: int) -> nn.Module:
    """Return the network of a fold; all optimizers start from the same weights."""
    torch.manual_seed(case.seed + fold)
    model = build_model(case.network, classes=parts.train.classes, channels=parts.channels)
    if case.preset is None:
        scale_batch_norm_momentum(model, case.batch)
    return model


def new_optimizer(case: Resnet50TableCase, model: nn.Module, parts: Parts, context: Context) -> Optimizer:
    """Return the optimizer of the case."""
    options = dict(PRESETS[case.preset].options) if case.preset else optimizer_options(case, len(parts.train))
    if case.optimizer == "kfac":
        options["communicator"] = context.communicator
    return build_optimizer(case.optimizer, model, lr=case.lr, momentum=case.momentum, **options)


def optimizer_options(case: Resnet50TableCase, images: int) -> dict[str, Any]:
    """Return what the optimizer takes besides rate and momentum."""
    if case.optimizer == "kfac":
        return {
            "damping": case.damping,
            "weight_decay": case.weight_decay,
            "statistics_decay": 0.0,  # no running average, as published
            "statistics_interval": "adaptive" if case.statistics == "adaptive" else 1,
            "fisher": case.fisher,
            "normalization": case.batch_norm,
            "rescale_weights": case.rescaling,
            "momentum_rule": case.momentum_rule,
        }
    options: dict[str, Any] = {} if case.optimizer == "adam" else {"weight_decay": case.weight_decay}
    if case.optimizer == "rmsprop-sgd":
        scale = case.epochs / AKIBA_EPOCHS
        options |= {"steps_per_epoch": -(-images // case.batch), "center": 10 * scale, "period": 5 * scale}
    return options


def new_schedule(case: Resnet50TableCase) -> Schedule:
    """Return the published schedule, or a linear decay to zero after the warm-up."""
    if case.preset:
        return PRESETS[case.preset].schedule
    falling = case.optimizer == "kfac" and case.momentum_rule == "published"
    return Schedule(
        peak_rate=case.lr,
        peak_momentum=case.momentum,
        warmup_epochs=case.warmup_epochs,
        start_epoch=case.warmup_epochs,
        end_epoch=case.epochs,
        coupling="proportional" if falling else "constant",
    )


def train_fold(
    case: Resnet50TableCase,
    model: nn.Module,
    optimizer: Optimizer,
    parts: Parts,
    fold: int,
    context: Context,
    watch: Callable[[Step], None] = lambda step: None,
) -> Iterator[Reading]:
    """Train on one fold."""
    preset = PRESETS[case.preset] if case.preset else None
    return train(
        model,
        optimizer,
        new_schedule(case),
        training=parts.train,
        validation=parts.validation,
        epochs=case.epochs,
        batch_size=case.batch,
        read_every=max(1, READING_IMAGES // case.batch) if case.images == "digits" else None,
        label_smoothing=preset.label_smoothing if preset else LABEL_SMOOTHING,
        augmentation=preset.augmentation(parts.train.classes) if preset else None,
        seed=case.seed + fold,
        communicator=context.communicator,
        micro_batch=case.micro_batch,
        precision=PRECISIONS[case.precision],
        channels_last=context.device == "cuda",
        checkpoints=_checkpoints(case, fold, context),
        watch=watch,
    )


def _checkpoints(case: Resnet50TableCase, fold: int, context: Context) -> Checkpoints | None:
    if context.checkpoints is None:
        return None
    return Checkpoints(
        folder=context.checkpoints / f"fold{fold}",
        identity={"case": repr(case), "source": source_hash(sources(case.experiment))},
        every_seconds=float(os.environ.get("KINJI_CHECKPOINT_SECONDS", CHECKPOINT_SECONDS)),
        interrupted=context.out_of_time,
    )


def shown(show: Callable[[int, int, str], None]) -> Callable[[Step], None]:
    """Return what shows epoch, loss and throughput of every step; what an earlier start has done does not count."""
    start, images = time.monotonic(), 0

    def watch(step: Step) -> None:
        nonlocal images
        images += step.images
        throughput = images / (time.monotonic() - start)
        words = f"epoch {step.epoch:.2f} of {step.epochs}, loss {step.loss:.3f}, {throughput:,.0f} images/s"
        show(step.iteration, step.steps, words)

    return watch


def statistics_bytes(optimizer: Optimizer) -> tuple[int, int]:
    """Return the bytes of the statistics formed so far, and of all of them in every step, as ranks would send them."""
    assert isinstance(optimizer, KFAC)
    formed = every = 0
    for (block, k), clock in optimizer.clocks.items():
        statistic = block.new_statistic(k)
        size = statistic.element_size() * packed_lengths([statistic], block.symmetric[k])[0]
        formed += clock.formed * size
        every += optimizer.steps * size
    return formed, every

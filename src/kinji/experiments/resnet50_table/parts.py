"""The images of a fold: a part to train on, one to read targets on, one to test on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kinji.experiments.cases import Resnet50TableCase
from kinji.experiments.context import Context
from kinji.training import FolderImages, ImageSource, digits_fold, procedural_images


@dataclass(frozen=True)
class Parts:
    """Three disjoint sets of images of `channels` channels."""

    train: ImageSource
    validation: ImageSource
    test: ImageSource
    channels: int


def load_parts(case: Resnet50TableCase, fold: int, context: Context) -> Parts:
    """Return the parts of a fold, on the device of the run where they are small.

    Procedural images of another fold are painted anew. ImageNet has no public test labels: its validation part is both.
    """
    return {"digits": _digits, "procedural": _procedural, "imagenet": _imagenet}[case.images](case, fold, context)


def _digits(case: Resnet50TableCase, fold: int, context: Context) -> Parts:
    parts = digits_fold(fold, training_images=case.training_images, folds=case.folds, seed=case.seed)
    parts = parts.to(context.device)
    return Parts(parts.train, parts.validation, parts.test, channels=1)


def _procedural(case: Resnet50TableCase, fold: int, context: Context) -> Parts:
    painted = partial(procedural_images, size=case.pixels, seed=case.seed + fold, device=context.device)
    return Parts(
        painted("train", case.training_images, augment=True),
        painted("validation", case.held_out_images),
        painted("test", case.held_out_images),
        channels=3,
    )


def _imagenet(case: Resnet50TableCase, fold: int, context: Context) -> Parts:
    folder = None if case.data_path is None else Path(case.data_path)
    read = partial(FolderImages, folder, size=case.pixels, workers=context.threads)
    held_out = read("val")
    return Parts(read("train", augment=True, seed=case.seed + fold), held_out, held_out, channels=3)

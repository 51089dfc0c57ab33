"""Handwritten digits in stratified folds, so that every image is tested exactly once.

The set is the one bundled with scikit-learn (1,797 images of 8 x 8 pixels, the test part of the UCI optical
recognition set), hence nothing is downloaded. The images outside a test fold are split once more, stratified too:
a training part of a given size, and a validation part on which targets are read and hyperparameters tuned.

Dimension letters: N images, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

CLASSES = 10
FOLDS = 5


@dataclass(frozen=True)
class Images:
    """Images with their labels, in memory: an `kinji.training.source.ImageSource`.

    Attributes
    ----------
    pixels_NCHW : torch.Tensor
        float32, normalized by the mean and deviation of the training part.
    labels_N : torch.Tensor
        int64, the class of each image.
    positions_N : numpy.ndarray
        Where each image stands in the whole set.
    classes : int
        Number of classes.
    """

    pixels_NCHW: torch.Tensor
    labels_N: torch.Tensor
    positions_N: NDArray[np.int64]
    classes: int = CLASSES

    def __len__(self) -> int:
        return len(self.labels_N)

    def batches(self, numbers: Iterable[torch.Tensor], *, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield pixels_BCHW and labels_B of each batch of numbers; nothing about them is random."""
        for numbers_B in numbers:
            yield self.pixels_NCHW[numbers_B], self.labels_N[numbers_B]

    def to(self, device: str) -> Images:
        """Return the images on another device."""
        return replace(self, pixels_NCHW=self.pixels_NCHW.to(device), labels_N=self.labels_N.to(device))


@dataclass(frozen=True)
class Fold:
    """A test fold, and the training and validation parts of the images outside it."""

    train: Images
    validation: Images
    test: Images

    def to(self, device: str) -> Fold:
        """Return the fold on another device."""
        return Fold(self.train.to(device), self.validation.to(device), self.test.to(device))


def digits_fold(fold: int, *, training_images: int, folds: int = FOLDS, seed: int = 0) -> Fold:
    """Return one of the stratified folds of the handwritten digits.

    Parameters
    ----------
    fold : int
        Which one, from 0 to ``folds - 1``; with one `seed` their test parts partition the set.
    training_images : int
        Size of the training part; the rest outside the test fold is for validation.
    folds : int
        Number of folds.
    seed : int
        Fixes the folds and, together with `fold`, the validation split.

    Returns
    -------
    Fold
        Three disjoint stratified parts that cover the set.

    Raises
    ------
    ValueError
        If there is no such fold, or too few images are left for training or for validation.
    """
    from sklearn.datasets import load_digits  # here, as it takes a second of every process that has other images
    from sklearn.model_selection import StratifiedKFold, train_test_split

    if not 0 <= fold < folds:
        raise ValueError(f"fold must lie in 0..{folds - 1}, got {fold}")
    digits = load_digits()
    outer = StratifiedKFold(folds, shuffle=True, random_state=seed).split(digits.images, digits.target)
    outside, test = list(outer)[fold]
    if not CLASSES <= training_images <= len(outside) - CLASSES:
        raise ValueError(
            f"training_images must lie in {CLASSES}..{len(outside) - CLASSES} to leave one image a class "
            f"for training and for validation, got {training_images}"
        )
    train, validation = train_test_split(
        outside, train_size=training_images, stratify=digits.target[outside], random_state=seed + fold
    )
    mean, deviation = digits.images[train].mean(), digits.images[train].std()

    def part(positions: NDArray[np.int64]) -> Images:
        pixels = torch.from_numpy((digits.images[positions] - mean) / deviation).float()
        return Images(pixels.unsqueeze(1), torch.from_numpy(digits.target[positions]), positions)

    return Fold(part(train), part(validation), part(test))

"""Handwritten digits in stratified folds, so that every image is tested exactly once.

The set is the one bundled with scikit-learn (1,797 images of 8 x 8 pixels, the test part of the UCI optical
recognition set), hence nothing is downloaded. The images outside a test fold are split once more, stratified too:
a training part of a fixed size, and a validation part on which targets are read and hyperparameters tuned.

Dimension letters: N images, C channels, H height, W width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedKFold, train_test_split

FOLDS = 5
DIGITS = 1797
SMALLEST_CLASS = 174

type Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Images:
    """Images with their labels.

    Parameters
    ----------
    pixels_NCHW : torch.Tensor
        float32, normalized.
    labels_N : torch.Tensor
        int64 class of each image.
    indices_N : numpy.ndarray
        Positions of the images in the whole set.
    """

    pixels_NCHW: torch.Tensor
    labels_N: torch.Tensor
    indices_N: Indices

    def __len__(self) -> int:
        return len(self.labels_N)


@dataclass(frozen=True)
class Fold:
    """One of several disjoint test folds, and the two parts of what is left."""

    train: Images
    validation: Images
    test: Images

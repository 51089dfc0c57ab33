"""Images held in memory as bytes, shifted and flipped as they are asked for.

Dimension letters: N images, B images of a batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kinji.training.counted_random import uniform


@dataclass(frozen=True, kw_only=True)
class StoredImages:
    """Images in the memory of one device: a `kinji.training.source.ImageSource`.

    Attributes
    ----------
    pixels_NCHW : torch.Tensor
        uint8.
    labels_N : torch.Tensor
        int64, the class of each image.
    classes : int
        Number of classes.
    mean, deviation : float
        Pixels, as shares of 255, are handed out less `mean`, over `deviation`.
    shift : int
        Each image moves by up to so many pixels in each direction, its edge repeated; 0: none does.
    flip : bool
        Whether every second image, by chance, is mirrored.
    seed : int
        Fixes shifts and flips, together with the epoch and the image's number.
    """

    pixels_NCHW: Tensor
    labels_N: Tensor
    classes: int
    mean: float = 0.5
    deviation: float = 0.25
    shift: int = 0
    flip: bool = False
    seed: int = 0

    def __len__(self) -> int:
        return len(self.labels_N)

    def to(self, device: str) -> StoredImages:
        """Return the images on another device."""
        return replace(self, pixels_NCHW=self.pixels_NCHW.to(device), labels_N=self.labels_N.to(device))

    def batches(self, numbers: Iterable[Tensor], *, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield pixels_BCHW and labels_B of each batch of numbers, on the device of the images."""
        for numbers_B in numbers:
            there_B = numbers_B.to(self.labels_N.device)
            pixels_BCHW = self._moved(there_B, epoch) if self.shift or self.flip else self.pixels_NCHW[there_B]
            yield (pixels_BCHW / 255 - self.mean) / self.deviation, self.labels_N[there_B]

    def _moved(self, numbers_B: Tensor, epoch: int) -> Tensor:
        """Return the images as this epoch shows them."""
        channels, height, width = self.pixels_NCHW.shape[1:]
        by_number = numbers_B[:, None]
        down_B1, right_B1, mirror_B1 = (uniform(self.seed, epoch, by_number, draw) for draw in range(3))
        rows_BH = torch.arange(height, device=numbers_B.device) + self._offset(down_B1)
        columns_BW = torch.arange(width, device=numbers_B.device) + self._offset(right_B1)
        if self.flip:
            columns_BW = torch.where(mirror_B1 < 0.5, columns_BW.flip(1), columns_BW)
        return self.pixels_NCHW[
            by_number[:, :, None, None],
            torch.arange(channels, device=numbers_B.device)[:, None, None],
            rows_BH.clamp(0, height - 1)[:, None, :, None],
            columns_BW.clamp(0, width - 1)[:, None, None, :],
        ]

    def _offset(self, share_B1: Tensor) -> Tensor:
        """Return whole numbers of pixels in -shift..shift."""
        return (share_B1 * (2 * self.shift + 1)).long() - self.shift

"""Images in folders, one a class, as ImageNet is usually unpacked and torchvision's ``ImageFolder`` reads it.

Training images are cropped at random and resized, and half of them mirrored (Szegedy et al. 2015, "Going deeper with
convolutions", sec. 6); validation images are cropped in the middle, 224 of 256 pixels of the shorter side. Worker
processes decode; an image that cannot be read is replaced by the next that can, and named once.

Dimension letters: N images, B images of a batch, C channels, H height, W width.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder

from kinji.training.counted_random import uniform

logger = logging.getLogger(__name__)

Box = tuple[float, float, float, float]
"""Left, upper, right and lower edge in pixels."""
Sample = tuple[Tensor, int, int]
"""pixels_CHW (uint8), the class, and the number of the image that was read."""

MEAN_C = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
DEVIATION_C = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
AREA = (0.08, 1.0)
ASPECT = (3 / 4, 4 / 3)
ATTEMPTS = 10
CENTRAL = 224 / 256
UNREADABLE_SHARE = 1e-3
"""More unreadable images than this share are an error; one is always survived."""


class FolderImages:
    """Images of one part of a folder: a `kinji.training.source.ImageSource` on the CPU.

    Parameters
    ----------
    folder : pathlib.Path or None
        Holds ``train/<class>/`` and ``val/<class>/``.
    part : {"train", "val"}
        Which of them.
    size : int
        Height and width that images are resized to.
    augment : bool
        Whether crops are random and images mirrored, in place of the central crop.
    seed : int
        Fixes crops and mirrors, together with the epoch and the image's number.
    workers : int
        Processes that read images; 0 for this one.

    Attributes
    ----------
    unreadable : set of int
        Numbers of the images met that could not be read.

    Raises
    ------
    FileNotFoundError
        If the folder is not there or holds no images.
    OSError
        In `batches`: if more than a share `UNREADABLE_SHARE` of the images cannot be read.
    """

    def __init__(
        self,
        folder: Path | None,
        part: Literal["train", "val"],
        *,
        size: int = 224,
        augment: bool = False,
        seed: int = 0,
        workers: int = 0,
    ) -> None:
        if folder is None or not (folder / part).is_dir():
            raise FileNotFoundError(
                f"no images: {'the path is not set' if folder is None else f'there is no folder {folder / part}'}. "
                "Set `data_path` of the case in config/<scale>.yaml (--data-path by hand) or, on a cluster, `imagenet` "
                "of slurm/config.yaml, to a folder with train/ and val/, one folder a class inside."
            )
        listing = ImageFolder(str(folder / part))  # FileNotFoundError if it is empty
        self.folder, self.classes, self.workers = folder / part, len(listing.classes), workers
        self.files = _Files(listing.samples, size, augment, seed)
        self.unreadable: set[int] = set()

    def __len__(self) -> int:
        return len(self.files)

    def batches(self, numbers: Iterable[Tensor], *, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield pixels_BCHW, normalized by ImageNet's means and deviations, and labels_B of each batch of numbers."""
        self.files.epoch = epoch
        asked: list[list[int]] = []
        loader = DataLoader(self.files, batch_sampler=_noted(numbers, asked), num_workers=self.workers)
        for pixels_BCHW, labels_B, read_B in loader:
            self._note(asked.pop(0), read_B.tolist())
            yield (pixels_BCHW / 255 - MEAN_C) / DEVIATION_C, labels_B

    def _note(self, asked: list[int], read: list[int]) -> None:
        """Name the images that were passed over to read others, and stop if there are too many."""
        for number, instead in zip(asked, read, strict=True):
            for passed in range(number, instead if instead >= number else instead + len(self)):
                self._name(passed % len(self), instead)
        allowed = max(1, int(UNREADABLE_SHARE * len(self)))
        if len(self.unreadable) > allowed:
            raise OSError(
                f"{len(self.unreadable)} of the {len(self)} images of {self.folder} cannot be read, more than the "
                f"{allowed} that are survived; one is {self.files.path(min(self.unreadable))}. Unpack them again."
            )

    def _name(self, number: int, instead: int) -> None:
        if number not in self.unreadable:
            self.unreadable.add(number)
            logger.warning("%s cannot be read; %s stands in", self.files.path(number), self.files.path(instead))


def _noted(numbers: Iterable[Tensor], asked: list[list[int]]) -> Iterator[list[int]]:
    """Hand out batches of numbers, leaving a note of each."""
    for numbers_B in numbers:
        asked.append(numbers_B.tolist())
        yield asked[-1]


class _Files(Dataset[Sample]):
    """What worker processes need: paths and classes in two arrays, which they share without copying."""

    def __init__(self, samples: list[tuple[str, int]], size: int, augment: bool, seed: int) -> None:
        self.paths_N = np.array([path.encode() for path, _ in samples])
        self.labels_N = np.array([label for _, label in samples])
        self.size, self.augment, self.seed, self.epoch = size, augment, seed, 0

    def __len__(self) -> int:
        return len(self.paths_N)

    def __getitem__(self, number: int) -> Sample:
        for read in (np.arange(number, number + len(self)) % len(self)).tolist():
            try:
                pixels_CHW = self._view(Image.open(self.path(read)), number)
            except (OSError, SyntaxError, ValueError):  # what Pillow raises for damaged files of some format
                continue
            return pixels_CHW, int(self.labels_N[read]), read
        raise OSError(f"no image of {Path(self.path(number)).parents[1]} can be read. Unpack them again.")

    def path(self, number: int) -> str:
        return self.paths_N[number].decode()

    def _view(self, image: Image.Image, number: int) -> Tensor:
        """Return the crop of an image that this epoch shows."""
        with image:
            draws = uniform(self.seed, self.epoch, torch.tensor(number), torch.arange(4 * ATTEMPTS + 1)).tolist()
            box = random_crop(*image.size, draws[1:]) if self.augment else central_crop(*image.size)
            view = image.convert("RGB").resize((self.size, self.size), Image.Resampling.BILINEAR, box=box)
        pixels_HWC = np.array(view)
        mirrored = self.augment and draws[0] < 0.5
        return torch.from_numpy(np.ascontiguousarray(pixels_HWC[:, ::-1] if mirrored else pixels_HWC)).permute(2, 0, 1)


def random_crop(width: int, height: int, draws: list[float]) -> Box:
    """Return a rectangle of random area and aspect inside the image; the largest central one if none of ten fits."""
    for area, aspect, across, down in zip(*[iter(draws)] * 4, strict=True):
        pixels = width * height * (AREA[0] + (AREA[1] - AREA[0]) * area)
        ratio = math.exp(math.log(ASPECT[0]) + math.log(ASPECT[1] / ASPECT[0]) * aspect)
        w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(across * (width - w + 1)), int(down * (height - h + 1))
            return left, top, left + w, top + h
    return middle(width, height, min(width, height * ASPECT[1]), min(height, width / ASPECT[0]))


def central_crop(width: int, height: int) -> Box:
    """Return the central square that is left of the image resized to 256 pixels and cropped to 224."""
    side = CENTRAL * min(width, height)
    return middle(width, height, side, side)


def middle(width: int, height: int, w: float, h: float) -> Box:
    """Return the rectangle of width w and height h in the middle of the image."""
    return (width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2

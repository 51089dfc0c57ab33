"""Which images a step takes, and which of them each micro-batch of each rank.

Everything follows from the seed and the number of steps done, so that a run can go on anywhere.

Dimension letters: N images, B images of a micro-batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import islice

import torch
from torch import Tensor

from kinji.training.source import ImageSource
from kinji.training.state import Step


@dataclass(frozen=True)
class Batch:
    """One step's share of this rank.

    Attributes
    ----------
    images : int
        Of the whole batch, on all ranks.
    passes : int
        Micro-batches of each rank.
    parts : iterator
        pixels_BCHW and labels_B of each micro-batch of this rank.
    """

    images: int
    passes: int
    parts: Iterator[tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The order of the images, in batches and shares.

    Attributes
    ----------
    images : int
        Of the training part.
    epochs : int
        Passes over it, each in a new random order.
    batch_size : int
        Images a step, on all ranks; the last step of an epoch takes what is left.
    read_every : int or None
        Steps between two readings, an epoch's if None.
    seed : int
        Fixes the order.
    rank, ranks : int
        Who takes part.
    micro_batch : int or None
        Images that a rank takes at once, its whole share if None; one more where a batch has too few images to give
        every rank as many micro-batches.

    Raises
    ------
    ValueError
        If a number is out of range.
    """

    images: int
    epochs: int
    batch_size: int
    read_every: int | None
    seed: int
    rank: int
    ranks: int
    micro_batch: int | None

    def __post_init__(self) -> None:
        if not 1 <= self.batch_size <= self.images:
            raise ValueError(f"batch_size must lie in 1..{self.images} (the training images), got {self.batch_size}")
        if self.read_every is not None and self.read_every < 1:
            raise ValueError(f"read_every must be a positive number of steps, got {self.read_every}")
        if self.micro_batch is not None and self.micro_batch < 1:
            raise ValueError(f"micro_batch must be a positive number of images, got {self.micro_batch}")
        smallest = (self.images - 1) % self.batch_size + 1
        if smallest < self.ranks:
            raise ValueError(
                f"the last batch of an epoch has {smallest} of {self.images} images, too few for {self.ranks} ranks: "
                f"choose another batch_size than {self.batch_size}"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Steps of a pass over the images."""
        return -(-self.images // self.batch_size)

    @property
    def steps(self) -> int:
        """Steps of the run."""
        return self.epochs * self.steps_per_epoch

    @property
    def identity(self) -> dict[str, int | None]:
        """What a run must have alike to go on from a checkpoint."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "rank"}

    def reads(self, iteration: int) -> bool:
        """Whether there is a reading after so many steps."""
        return iteration == self.steps or iteration % (self.read_every or self.steps_per_epoch) == 0

    def step(self, iteration: int, loss: float, images: int) -> Step:
        """Return what there is to see after so many steps."""
        return Step(
            iteration=iteration,
            steps=self.steps,
            epoch=iteration / self.steps_per_epoch,
            epochs=self.epochs,
            loss=loss,
            images=images,
        )

    def batches(self, source: ImageSource, done: int) -> Iterator[Batch]:
        """Yield this rank's share of every batch that is left after so many steps."""
        first, skipped = divmod(done, self.steps_per_epoch)
        for epoch, order_N in islice(enumerate(self._orders()), first, None):
            shares = [self.share(batch_N) for batch_N in order_N.split(self.batch_size)[skipped:]]
            skipped = 0
            arriving = source.batches((part_B for share in shares for part_B in share), epoch=epoch)
            sizes = (len(batch_N) for batch_N in order_N.split(self.batch_size)[-len(shares) :])
            for share, size in zip(shares, sizes, strict=True):
                yield Batch(size, len(share), islice(arriving, len(share)))

    def share(self, batch_N: Tensor) -> list[Tensor]:
        """Return the numbers of the images in each micro-batch of this rank; sizes differ by one image at most."""
        images = len(batch_N)
        passes = min(-(-images // (self.ranks * (self.micro_batch or images))), images // self.ranks)
        return list(batch_N.tensor_split(passes * self.ranks)[self.rank :: self.ranks])

    def _orders(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.epochs):
            yield torch.randperm(self.images, generator=generator)

"""What the training loop asks of images, and of the augmentation of whole batches.

Dimension letters: B images of a batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor


class ImageSource(Protocol):
    """Images that the loop asks for by number.

    Attributes
    ----------
    classes : int
        Number of classes K.
    """

    @property
    def classes(self) -> int: ...  # noqa: D102

    def __len__(self) -> int: ...

    def batches(self, numbers: Iterable[Tensor], *, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the images of each batch of numbers, in order.

        Whatever is random about image ``n`` in epoch ``e`` (its crop, its flip) depends on the source's seed, ``e`` and
        ``n`` alone, never on workers, ranks or the other images of the batch.

        Parameters
        ----------
        numbers : iterable of torch.Tensor
            int64, numbers_B of each batch, within 0 to ``len(self) - 1``.
        epoch : int
            Passes over the images before this one.

        Yields
        ------
        tuple of torch.Tensor
            pixels_BCHW (float32, normalized) and labels_B (int64).
        """
        ...


class Augmentation(Protocol):
    """A random change of whole batches, with its own memory: such as running mixup and random erasing."""

    def __call__(self, pixels_BCHW: Tensor, labels_B: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return pixels_BCHW and the targets_BK, which are probabilities; all chance comes from `generator`."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what the next batch depends on, such as the previous virtual batch of running mixup."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        ...

"""What the owner of a block remembers of it from step to step, besides the velocities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(kw_only=True)
class BlockState:
    """Statistics and inverse of one block.

    Attributes
    ----------
    statistics
        Each averaged over steps; None as long as there was no finite one.
    before
        Of each statistic the last two of single batches, latest first, for adaptive intervals.
    inverse
        Empty as long as there is none: the block follows the first-order rule.
    raised
        By what the damping is multiplied since statistics were refused.
    changed
        Whether the statistics have changed since the inverse was made.
    """

    statistics: list[Tensor | None]
    before: list[list[Tensor]] = field(default_factory=list)
    inverse: list[Tensor] = field(default_factory=list)
    raised: float = 1.0
    changed: bool = False

    @property
    def there(self) -> list[Tensor]:
        """The statistics that are there."""
        return [statistic for statistic in self.statistics if statistic is not None]

    def take(self, k: int, fresh: Tensor, decay: float) -> Tensor | None:
        """Average the k-th statistic with a new one, whose memory is taken; return what is no longer needed, if any."""
        self.changed = True
        average = self.statistics[k]
        if average is None or decay == 0:
            self.statistics[k] = fresh
            return average
        average.lerp_(fresh, 1 - decay)
        return fresh

    def before_of(self, k: int) -> list[Tensor]:
        """Return the last two values of the k-th statistic, latest first, or fewer."""
        return self.before[k] if self.before else []

    def remember(self, k: int, fresh: Tensor) -> None:
        """Keep a copy of the last two statistics of single batches."""
        if not self.before:
            self.before = [[] for _ in self.statistics]
        self.before[k] = [fresh.clone(), *self.before[k][:1]]


def portable(value: Any) -> Any:
    """Return nested lists and dictionaries with the tensors as they are now, safe from later steps."""
    return _mapped(value, None)


def on_device(value: Any, device: torch.device) -> Any:
    """Return nested lists and dictionaries with copies of the tensors on a device."""
    return _mapped(value, device)


def _mapped(value: Any, device: torch.device | None) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone() if device is None else value.detach().to(device, copy=True)
    if isinstance(value, dict):
        return {key: _mapped(entry, device) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_mapped(entry, device) for entry in value]
    return value

"""What the owner of a block remembers of it from step to step, besides the velocities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kinji.kfac.triangle import panels


@dataclass(kw_only=True)
class BlockState:
    """Statistics and inverse of one block.

    Attributes
    ----------
    symmetric
        For each statistic, whether its lower triangle is all that counts.
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

    symmetric: Sequence[bool]
    statistics: list[Tensor | None] = field(default_factory=list)
    before: list[list[Tensor]] = field(default_factory=list)
    inverse: list[Tensor] = field(default_factory=list)
    raised: float = 1.0
    changed: bool = False

    def __post_init__(self) -> None:
        self.statistics = self.statistics or [None] * len(self.symmetric)
        self.before = self.before or [[] for _ in self.symmetric]

    @property
    def there(self) -> list[Tensor]:
        """The statistics that are there."""
        return [statistic for statistic in self.statistics if statistic is not None]

    def take(self, k: int, fresh: Tensor, decay: float, *, remember: bool) -> Tensor | None:
        """Average the k-th statistic with a new one, whose memory is taken; return what is no longer needed, if any.

        ``remember`` to keep the new one too, as that of a single batch, until two more have come.
        """
        self.changed = True
        average = self.statistics[k]
        if remember and average is None:
            average = self.statistics[k] = fresh.clone()
        if average is None or (decay == 0 and not remember):
            self.statistics[k] = fresh
            return average
        for part, new in zip(panels(average, self.symmetric[k]), panels(fresh, self.symmetric[k]), strict=True):
            part.lerp_(new, 1 - decay)
        return self._remember(k, fresh) if remember else fresh

    def saved(self) -> dict[str, Any]:
        """Return what, besides ``symmetric``, makes the state again: nothing that stands above diagonals."""
        saved = vars(self) | {
            "statistics": [self._telling(k, tensor) for k, tensor in enumerate(self.statistics)],
            "before": [[self._telling(k, tensor) for tensor in of_k] for k, of_k in enumerate(self.before)],
        }
        del saved["symmetric"]
        return saved

    def _telling(self, k: int, tensor: Tensor | None) -> Tensor | None:
        return tensor if tensor is None or not self.symmetric[k] else tensor.tril()

    def _remember(self, k: int, fresh: Tensor) -> Tensor | None:
        kept = [fresh, *self.before[k]]
        self.before[k] = kept[:2]
        return kept[2] if len(kept) > 2 else None


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

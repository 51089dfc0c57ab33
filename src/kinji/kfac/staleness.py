"""When a statistic is formed again: at fixed intervals, or as rarely as it changes.

Adaptive intervals are algorithms 1 and 2 of Osawa et al. 2020 (SP-NGD), for each statistic on its own. With X the new
statistic, X_1 and X_2 the two before it, D_1 and D_2 the intervals that led to them, the next interval is

- half of D_1, but at least 1, if X is not similar to X_1,
- D_1, if it is similar to X_1 but not to X_2,
- D_1 + D_2, if it is similar to both,

where similar means ``|X - Y| / |Y| < alpha`` in the Frobenius norm. X is the statistic of one batch, not its average
over steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Adaptive = Literal["adaptive"]
LONGEST = 2**20
"""No interval is longer; single precision holds all of them exactly."""


@dataclass
class Clock:
    """When one statistic is due, known to all ranks.

    Attributes
    ----------
    due
        The step at which it is formed next.
    interval, previous
        The last two intervals.
    formed
        How often it was formed.
    """

    due: int = 0
    interval: int = 1
    previous: int = 1
    formed: int = 0

    def advance(self, step: int, interval: int) -> None:
        """Note that the statistic was formed in a step and is due again after an interval."""
        self.due, self.interval, self.previous = step + interval, interval, self.interval
        self.formed += 1


def next_intervals(
    clocks: Sequence[Clock], fresh: Sequence[Tensor], before: Sequence[Sequence[Tensor]], alpha: float
) -> list[int]:
    """Choose the interval that follows each new statistic (algorithm 2).

    Parameters
    ----------
    before
        The statistics before each new one, latest first; those there are not yet count as not similar, but the first
        interval of all is 1.
    """
    pairs = [(x, y) for x, of_x in zip(fresh, before, strict=True) for y in of_x]
    answers = iter(torch.stack([(x - y).norm() < alpha * y.norm() for x, y in pairs]).tolist() if pairs else [])
    similar = [[next(answers) for _ in of_x] for of_x in before]
    return [_next_interval(clock, of_clock) for clock, of_clock in zip(clocks, similar, strict=True)]


def _next_interval(clock: Clock, similar: Sequence[bool]) -> int:
    if not any(similar[:1]):
        return max(1, clock.interval // 2)
    if not any(similar[1:2]):
        return clock.interval
    return min(clock.interval + clock.previous, LONGEST)

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

from kinji.kfac.threads import share_out
from kinji.kfac.triangle import panels, squared_norm_

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
    clocks: Sequence[Clock],
    fresh: Sequence[Tensor],
    before: Sequence[Sequence[Tensor]],
    symmetric: Sequence[bool],
    alpha: float,
) -> list[int]:
    """Choose the interval that follows each new statistic (algorithm 2).

    Parameters
    ----------
    before
        The statistics before each new one, latest first; those there are not yet count as not similar, but the first
        interval of all is 1.
    symmetric
        For each statistic, whether its lower triangle is all that counts.
    """

    def compared(chosen: Sequence[int], which: int) -> list[int]:
        """Return those of the chosen statistics that are similar to the last, or the one before."""
        if not chosen:
            return []
        triples = [(fresh[k], before[k][which], symmetric[k]) for k in chosen]
        found = share_out(lambda triple: _are_similar(*triple, alpha), triples, fresh[0].device)
        return [k for k, similar in zip(chosen, torch.stack(found).tolist(), strict=True) if similar]

    once = compared([k for k, of_k in enumerate(before) if of_k], 0)
    twice = compared([k for k in once if len(before[k]) > 1], 1)
    return [_next_interval(clock, k in once, k in twice) for k, clock in enumerate(clocks)]


def _are_similar(x: Tensor, y: Tensor, symmetric: bool, alpha: float) -> Tensor:
    """Compare in panels, which stay in the cache."""
    parts = zip(panels(x, symmetric), panels(y, symmetric), strict=True)
    squares = [torch.stack([squared_norm_(r, symmetric) for r in (p - q, q.clone())]) for p, q in parts]
    difference, size = torch.stack(squares).sum(0)
    return difference < alpha**2 * size


def _next_interval(clock: Clock, similar: bool, to_both: bool) -> int:
    if not similar:
        return max(1, clock.interval // 2)
    return min(clock.interval + clock.previous, LONGEST) if to_both else clock.interval

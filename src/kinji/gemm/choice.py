"""Which scheme and count are proved to leave out little enough, and take the fewest INT8 products.

Errors are in units of 2^-53 |A||B|.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from kinji.gemm.error import loss_over_norms, scheme_one_bound, steps_over_norms
from kinji.gemm.moduli import MODULI
from kinji.gemm.moduli import moduli as constants_of

UNIT_ROUNDOFF = 2.0**-53
SLICES = range(2, 19)


@dataclass(frozen=True)
class Choice:
    """A scheme, its count, its INT8 products, and bounds on what it leaves out and what it rounds (units of 2^-53)."""

    scheme: Literal["scheme_one", "scheme_two"]
    count: int
    products: int
    truncation: float
    rounding: float


@dataclass(frozen=True)
class Evidence:
    """What choices rest on.

    Attributes
    ----------
    inner
        K.
    ratio
        The greatest (|a_i| sum_j + |b_j| sum_i) / (|A||B|)_ij, with 2-norms and sums of rows of A and columns of B,
        and |A||B| from its lower bound.
    least
        The least entry of that bound, operands scaled to below 1; 0 for complex operands: scheme I is not for them.
    capacity
        From this capacity on, moduli take the operands to integers without truncation.
    """

    inner: int
    ratio: float
    least: float
    capacity: float


def cheapest(evidence: Evidence, target: float, allowed: float) -> Choice | None:
    """Return the choice of fewest products; None if none is proved to keep to `target`.

    Scheme II may leave out what is `allowed`; scheme I what its own rounding leaves of the target.
    """
    two = (_scheme_two(count, evidence) for count in range(1, len(MODULI) + 1))
    one = (_scheme_one(slices, evidence) for slices in SLICES)
    enough = [
        next((choice for choice in two if choice.truncation <= allowed), None),
        next((choice for choice in one if choice.truncation + choice.rounding <= target), None),
    ]
    return min(filter(None, enough), key=lambda choice: choice.products, default=None)


def _scheme_two(count: int, evidence: Evidence) -> Choice:
    constants = constants_of(count)
    truncation = steps_over_norms(constants) * evidence.ratio
    if constants.capacity >= evidence.capacity:
        truncation = loss_over_norms(constants) * evidence.ratio if constants.loss else 0.0
    return Choice("scheme_two", count, count, truncation / UNIT_ROUNDOFF, 1.0)


def _scheme_one(slices: int, evidence: Evidence) -> Choice:
    left_out = scheme_one_bound(evidence.inner, slices) / UNIT_ROUNDOFF
    truncation = left_out / evidence.least if evidence.least else math.inf
    return Choice("scheme_one", slices, triangle(slices), truncation, slices - 1.0)


def triangle(n: int) -> int:
    """Return n (n + 1) / 2, the products of n slices."""
    return n * (n + 1) // 2


def reason(evidence: Evidence, target: float) -> str:
    """Say why there is no choice, and what to do."""
    if math.isinf(evidence.ratio):
        return (
            f"error={target:g}: an entry of |A||B| is too far below its row's and column's greatest to be bounded;"
            " rescale the operands, or pass fallback='native'."
        )
    left_out = _scheme_two(len(MODULI), evidence).truncation
    return (
        f"error={target:g}: {len(MODULI)} moduli are proved to leave out no more than {left_out:.3g}, and"
        f" {SLICES[-1]} slices than {_scheme_one(SLICES[-1], evidence).truncation:.3g}; ask for more, or pass"
        " fallback='native'."
    )

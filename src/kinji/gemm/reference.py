"""Reference values of sampled entries of a product, exact to twice FP64 precision.

Each product x y is split without error into a head and a tail (TwoProduct: Dekker, Numer. Math. 18, 1971),
and the sum of all heads and tails is rounded once (Shewchuk's sum, `math.fsum`).

Dimension letters: M rows of A, K inner dimension, N columns of B, P sampled entries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

UNIT_ROUNDOFF = 2.0**-53
SPLITTER = 2.0**27 + 1
LARGEST_FACTOR = 2.0**995  # beyond it TwoProduct overflows
SMALLEST_PRODUCT = 2.0**-960  # below it the tail underflows


@dataclass(frozen=True)
class Reference:
    """Entries (rows[p], columns[p]) of A B.

    Attributes
    ----------
    head_P, tail_P
        The entry correctly rounded to FP64, and what that rounding left out, correctly rounded.
    magnitude_P
        The same entries of |A| |B|, the scale of every componentwise error bound.
    """

    rows_P: np.ndarray
    columns_P: np.ndarray
    head_P: np.ndarray
    tail_P: np.ndarray
    magnitude_P: np.ndarray

    def errors(self, product_MN: np.ndarray) -> np.ndarray:
        """Return |C' - C| of the sampled entries of C', to a relative accuracy of about 2^-52 (P)."""
        return np.abs((product_MN[self.rows_P, self.columns_P] - self.head_P) - self.tail_P)

    def error_in_roundoffs(self, product_MN: np.ndarray) -> float:
        """Return max |C' - C| / (|A| |B|) over the sample, in units of 2^-53."""
        return float(np.max(self.errors(product_MN) / self.magnitude_P)) / UNIT_ROUNDOFF

    def relative_error(self, product_MN: np.ndarray) -> float:
        """Return max |C' - C| / |C| over the sample."""
        return float(np.max(self.errors(product_MN) / np.abs(self.head_P)))


def sample_reference(a_MK: np.ndarray, b_KN: np.ndarray, *, samples: int, seed: int) -> Reference:
    """Return the reference of `samples` entries drawn evenly from A B with repetition.

    Raises
    ------
    ValueError
        If a factor or a product of the sample lies outside the range in which TwoProduct is exact.
    """
    rng = np.random.default_rng(seed)
    rows = rng.integers(a_MK.shape[0], size=samples)
    columns = rng.integers(b_KN.shape[1], size=samples)
    sums = [_exact_sum(a_MK[i], b_KN[:, j]) for i, j in zip(rows, columns, strict=True)]
    head, tail, magnitude = np.array(sums).T
    return Reference(rows, columns, head, tail, magnitude)


def two_product(x_K: np.ndarray, y_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (p, e) with p = fl(x y) and p + e = x y exactly.

    Raises
    ------
    ValueError
        If a factor exceeds 2^995 or a product that is not zero lies below 2^-960.
    """
    with np.errstate(over="ignore", under="ignore"):
        p = x_K * y_K
    small = (np.abs(p) < SMALLEST_PRODUCT) & (x_K != 0) & (y_K != 0)
    if small.any() or max(np.abs(x_K).max(), np.abs(y_K).max(), np.abs(p).max()) > LARGEST_FACTOR:
        raise ValueError("factors beyond 2^995 or products below 2^-960: scale the operands by powers of two first.")
    (x_high, x_low), (y_high, y_low) = _halves(x_K), _halves(y_K)
    return p, ((x_high * y_high - p) + x_high * y_low + x_low * y_high) + x_low * y_low


def _halves(x_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scaled = SPLITTER * x_K
    high = scaled - (scaled - x_K)
    return high, x_K - high


def _exact_sum(x_K: np.ndarray, y_K: np.ndarray) -> tuple[float, float, float]:
    p, e = two_product(x_K, y_K)
    terms = np.concatenate([p, e]).tolist()
    head = math.fsum(terms)
    return head, math.fsum([*terms, -head]), math.fsum(np.abs(p).tolist())

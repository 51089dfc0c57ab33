"""Constants of the Chinese remainder theorem for N coprime moduli of 8 bits.

The integer x, |x| < P / 2 with P = p_1 ... p_N, is known from its residues r_l = x mod p_l:
x = S - P rint(S / P) with S = sum_l w_l r_l and w_l = (P / p_l) ((P / p_l)^-1 mod p_l).

Each w_l is cut into three parts on common grids, so coarse that the sum of parts times residues is exact in FP64,
in any order. Up to N = 15 the parts hold all of w_l; beyond it they leave `loss` out of x.

Source: Ozaki, Uchino and Imamura, Ozaki Scheme II (arXiv 2504.08009), section 4. Two parts are published; the
third makes integer products come out exactly.

Dimension letters: L moduli, three parts of a constant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

MODULI = (256, 255, 253, 251, 247, 241, 239, 233, 229, 227, 223, 217, 211, 199, 197, 193, 191, 181, 179, 173)
DOUBLE_BITS = 53
PARTS = 3
HEADROOM = 1 - 2.0**-20  # keeps rint(S / P), computed from the first part, away from a tie
LOW_BITS = 40  # integers of up to 2 * 40 bits are reduced as high * 2^40 + low


@dataclass(frozen=True)
class Moduli:
    """What N moduli need.

    Attributes
    ----------
    moduli_L, inverses_L
        p_l and 1 / p_l.
    carries_L
        2^40 mod p_l, in [-p_l / 2, p_l / 2].
    weights_3L, product_3
        The parts of w_l and of P.
    inverse_product
        1 / P.
    capacity
        Half of P, less a margin: the sum |A'||B'| of integer operands that N moduli tell apart.
    loss
        Bound on what the parts leave out of a reconstructed integer.
    """

    moduli_L: np.ndarray
    inverses_L: np.ndarray
    carries_L: np.ndarray
    weights_3L: np.ndarray
    product_3: np.ndarray
    inverse_product: float
    capacity: float
    loss: float


@cache
def moduli(count: int) -> Moduli:
    """Return the constants of the first `count` moduli; raise ValueError if there are not that many."""
    if not 1 <= count <= len(MODULI):
        raise ValueError(f"moduli is {count}: take 1 to {len(MODULI)}, and 15 for the accuracy of native FP64.")
    chosen = MODULI[:count]
    product = math.prod(chosen)
    half_residues = sum(p // 2 for p in chosen) + 1
    bits = DOUBLE_BITS - 1 - half_residues.bit_length()  # the difference of two sums has to fit as well
    grids = [max(product.bit_length() - part * bits, 0) for part in range(1, PARTS + 1)]
    weights = [product // p * pow(product // p, -1, p) for p in chosen]
    return Moduli(
        moduli_L=np.array(chosen, dtype=np.float64),
        inverses_L=1 / np.array(chosen, dtype=np.float64),
        carries_L=np.array([_symmetric(2**LOW_BITS, p) for p in chosen], dtype=np.float64),
        weights_3L=np.array([_parts(w, grids) for w in weights]).T.copy(),
        product_3=np.array(_parts(product, grids)),
        inverse_product=1 / product,
        capacity=product / 2 * HEADROOM,
        loss=float(2 * half_residues * 2 ** grids[-1]) if grids[-1] else 0.0,
    )


def _symmetric(x: int, p: int) -> int:
    return (x + p // 2) % p - p // 2


def _parts(x: int, grids: list[int]) -> list[float]:
    parts = []
    for grid in grids:
        part = x >> grid << grid
        parts.append(float(part))
        x -= part
    return parts

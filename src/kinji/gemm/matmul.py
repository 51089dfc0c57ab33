"""A product to a given accuracy: the cheapest scheme and count that are proved to reach it.

The error that counts is max_ij |C' - C|_ij / (|A||B|)_ij, in units of 2^-53. What a scheme leaves out is bounded above
(`kinji.gemm.error`), |A||B| below by scheme I itself: slices are truncated, so a few of those of |A| and |B| give less
than |A||B|. The first lower bound takes one INT8 product; sharper ones, of 3 and 10, are computed only where they could
save more products than they cost.

Dimension letters: M rows of A, K inner dimension, N columns of B.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, Generic, Literal, TypeAlias, TypeVar, overload

import numpy as np
import torch

from kinji.gemm.choice import UNIT_ROUNDOFF, Choice, Evidence, cheapest, reason, triangle
from kinji.gemm.error import capacity_for_integers, norms, truncation_steps
from kinji.gemm.lower_bound import lower_bound, spare_disjoint
from kinji.gemm.moduli import moduli as constants_of
from kinji.gemm.operands import Matrix, Operands, as_kind_of, as_operands, measured, propagate
from kinji.gemm.ozaki_one import multiply_slices
from kinji.gemm.ozaki_two import measured_complex, multiply_complex, multiply_real

Kind = TypeVar("Kind", np.ndarray, torch.Tensor)
Error: TypeAlias = float | Literal["dgemm"]
Fallback: TypeAlias = Literal["native"] | None
LOWER_BOUND_SLICES = (1, 2, 4)


class AccuracyError(ArithmeticError):
    """No scheme is proved to reach the error asked for."""


@dataclass(frozen=True)
class Product(Generic[Kind]):
    """A product and what is known of it.

    Attributes
    ----------
    value
        C', M x N, FP64 or complex128.
    scheme, count
        What computed it: scheme I with `count` slices, scheme II with `count` moduli, or native FP64 (count 0).
    bound
        Proved: |C' - C| <= bound 2^-53 |A||B| in every entry that is finite (plus 2^-1075 where it is subnormal).
    """

    value: Kind
    scheme: Literal["scheme_one", "scheme_two", "native"]
    count: int
    bound: float


@overload
def matmul(
    a_MK: np.ndarray, b_KN: np.ndarray, *, error: Error = ..., fallback: Fallback = ...
) -> Product[np.ndarray]: ...
@overload
def matmul(
    a_MK: torch.Tensor, b_KN: torch.Tensor, *, error: Error = ..., fallback: Fallback = ...
) -> Product[torch.Tensor]: ...
def matmul(a_MK: Matrix, b_KN: Matrix, *, error: Error = "dgemm", fallback: Fallback = None) -> Product[Any]:
    """Return A B on the INT8 unit to a guaranteed accuracy, and how it was computed.

    Parameters
    ----------
    a_MK, b_KN
        Real or complex operands of single or double precision, two NumPy arrays or two torch tensors on one device.
    error
        What max |C' - C| / (|A||B|) may be, in units of 2^-53; "dgemm" is K, the bound on native FP64 products.
    fallback
        "native": where no scheme is proved to reach the error, return the native FP64 product, with its own bound.

    Returns
    -------
    Product
        The value, the scheme and count that computed it, and the bound proved. Entries that an infinity or a NaN
        reaches are as in IEEE arithmetic, and no bound speaks of them.

    Raises
    ------
    AccuracyError
        If no scheme is proved to reach the error and `fallback` is not "native".
    TypeError, ValueError
        For operands that are not conforming matrices of floating-point numbers, an error that is not positive, or a
        fallback that does not exist.
    """
    a, b = as_operands(a_MK, b_KN)
    target = _target(error, a.shape[1])
    if fallback not in (None, "native"):
        raise ValueError(f"fallback is {fallback!r}: take 'native', or leave it out.")
    if 0 in (*a.shape, *b.shape):
        return Product(as_kind_of(a_MK, a.new_zeros(len(a), b.shape[1])), "scheme_two", 0, 0.0)
    try:
        with torch.cuda.device_of(a):
            operands = measured_complex(a, b) if a.is_complex() else measured(a, b)
            c_MN, choice, bound = _emulate(operands, target)
        return Product(as_kind_of(a_MK, c_MN), choice.scheme, choice.count, bound)
    except AccuracyError:
        if fallback is None:
            raise
        return Product(as_kind_of(a_MK, a @ b), "native", 0, _native_bound(a))


def _target(error: Error, k: int) -> float:
    if error == "dgemm":
        return float(max(k, 1))
    if not isinstance(error, Real) or not 0 < error < math.inf:
        raise ValueError(f"error is {error!r}: give a positive number of units of 2^-53 |A||B|, or 'dgemm'.")
    return float(error)


def _native_bound(a_MK: torch.Tensor) -> float:
    """Return K, or sqrt(2) (K + 2) for complex operands: Higham, Accuracy and Stability, 2002, (3.11) and Lemma 3.5."""
    k = a_MK.shape[1]
    return math.sqrt(2) * (k + 2) if a_MK.is_complex() else float(k)


def _emulate(operands: Operands, target: float) -> tuple[torch.Tensor, Choice, float]:
    """Return the product by the cheapest choice that keeps to the target, the choice, and the bound proved."""
    if target > 1:
        _, choice = _choose(operands, target, target - 1)
        return _multiply(operands, choice), choice, choice.truncation + choice.rounding
    return _emulate_below_rounding(operands, target)


def _emulate_below_rounding(operands: Operands, target: float) -> tuple[torch.Tensor, Choice, float]:
    """Rounding may take all of the target, but takes |C'| / (|A||B|): hope for half, then leave what was seen."""
    allowed = target / 2
    for _ in range(2):
        lower_MN, choice = _choose(operands, target, allowed)
        c_MN = _multiply(operands, choice)
        rounding = min(choice.rounding, _relative_size(c_MN, lower_MN, operands))
        if choice.truncation + rounding <= target:
            return c_MN, choice, choice.truncation + rounding
        allowed = target - rounding
        if allowed < 0:
            break
    raise AccuracyError(f"error={target:g}: rounding to FP64 alone may take {rounding:.3g} here; ask for more than 1.")


def _choose(operands: Operands, target: float, allowed: float) -> tuple[torch.Tensor, Choice]:
    """Return a lower bound on |A||B|, sharp enough, and the cheapest choice that leaves out no more than is allowed.

    No |A||B| is above the product of 2-norms: what that would allow tells how much a sharper bound could save.
    """
    ideal = cheapest(_ideal_evidence(operands), target, allowed)
    bounds = LOWER_BOUND_SLICES[target <= 1 :]
    for slices, next_slices in zip(bounds, (*bounds[1:], None), strict=True):
        lower_MN = lower_bound(operands, slices)
        evidence = _evidence(operands, lower_MN)
        choice = cheapest(evidence, target, allowed)
        if next_slices is None or (choice and ideal and choice.products - ideal.products <= triangle(next_slices)):
            break
    if choice is None:
        raise AccuracyError(reason(evidence, target))
    return lower_MN, _sharpened(choice, operands, lower_MN, allowed)


def _evidence(operands: Operands, lower_MN: torch.Tensor) -> Evidence:
    complex_ = operands.a_MK.is_complex()
    steps = (*norms(operands.a_scales, of_parts=complex_), *norms(operands.b_scales, of_parts=complex_))
    ratio, least = operands.on.worst_ratio(lower_MN, *steps)
    if math.isinf(ratio):
        ratio, least = operands.on.worst_ratio(spare_disjoint(lower_MN, operands), *steps)
    return Evidence(operands.a_MK.shape[1], ratio, 0.0 if complex_ else least, _capacity(operands))


def _ideal_evidence(operands: Operands) -> Evidence:
    sums = (
        torch.nan_to_num(x.sum_R / x.step_R, nan=0.0).max() for x in map(norms, (operands.a_scales, operands.b_scales))
    )
    return Evidence(operands.a_MK.shape[1], float(sum(sums)), 1.0, _capacity(operands))


def _capacity(operands: Operands) -> float:
    return max(capacity_for_integers(scales) for scales in (operands.a_scales, operands.b_scales))


def _sharpened(choice: Choice, operands: Operands, lower_MN: torch.Tensor, allowed: float) -> Choice:
    """Return the choice with the bound of its own steps, or that of one modulus less where this keeps to the target."""
    if choice.scheme == "scheme_one" or choice.truncation == 0:
        return choice
    for count in (choice.count - 1, choice.count):
        truncation = _truncation(count, operands, lower_MN) if count else math.inf
        if truncation <= allowed:
            return replace(choice, count=count, products=count, truncation=truncation)
    return choice


def _truncation(count: int, operands: Operands, lower_MN: torch.Tensor) -> float:
    constants, complex_ = constants_of(count), operands.a_MK.is_complex()
    a, b = (truncation_steps(x, constants, of_parts=complex_) for x in (operands.a_scales, operands.b_scales))
    ratio, _ = operands.on.worst_ratio(lower_MN, *a, *b)
    return ratio * (1 + 2.0**-40) / UNIT_ROUNDOFF


def _multiply(operands: Operands, choice: Choice) -> torch.Tensor:
    if choice.scheme == "scheme_two":
        multiply = multiply_complex if operands.a_MK.is_complex() else multiply_real
        return multiply(operands, constants_of(choice.count))
    c_MN = multiply_slices(operands, choice.count)
    propagate(c_MN, operands)
    return c_MN


def _relative_size(c_MN: torch.Tensor, lower_MN: torch.Tensor, operands: Operands) -> float:
    """Return an upper bound on max |C'| / (|A||B|)."""
    exponent_MN = operands.a_scales.exponent_R[:, None] + operands.b_scales.exponent_R
    size_MN = torch.where(c_MN.isfinite(), torch.ldexp(c_MN.abs(), -exponent_MN) / lower_MN, 0)
    return float(torch.nan_to_num(size_MN, nan=0.0).max()) * (1 + 2.0**-40)

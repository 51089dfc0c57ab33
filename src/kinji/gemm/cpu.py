"""The kernels of both schemes on the CPU: compiled loops (numba), and the processor's INT8 product (torch).

`kinji.gemm.cuda` has the same functions for a GPU; `kinji.gemm.backend` chooses, and says what each is to do.

Dimension letters: R rows of an operand (rows of A, columns of B), K inner dimension, M rows and N columns of the
product, S slices, L moduli, P products.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Sequence
from functools import cache
from typing import TypeAlias

import llvmlite.binding as llvm
import numpy as np
import torch
from numba import config, njit, prange

from kinji.gemm.moduli import LOW_BITS, Moduli, moduli
from kinji.gemm.scales import ENERGY_BITS, RowScales

Integer: TypeAlias = int | np.int64
DOUBLE_BIAS = 1023
FRACTION_BITS = 52
FRACTION_MASK = (1 << FRACTION_BITS) - 1
EXPONENT_MASK = 0x7FF
MAGNITUDE_MASK = (1 << 63) - 1
INFINITY_PATTERN = EXPONENT_MASK << FRACTION_BITS
SIGNIFICAND_BIAS = 1075  # |x| = significand * 2^(biased exponent - 1075), with biased exponent 1 for subnormal x
WIDEST_SHIFT = 63
FIRST_SCALING = 900  # C is 0 or within 2^-160 ... 2^160 before it: the first scaling is exact, the second rounds once
_workspaces = threading.local()  # name: memory, and the view of it asked for last
NOTHING = torch.empty(0, dtype=torch.int8)
LOW_UNIT = 2.0**LOW_BITS
NEAREST = 1.5 * 2.0**52  # added and taken off again, it leaves the nearest integer
GROUP = 4  # moduli whose residues are added up in one pass over a row of the product
SELF_TEST_SHAPES = ((1, 100, 1), (17, 64, 24), (40, 200, 33), (64, 256, 64))  # vector, blocked and ragged kernels


def _use_wide_vectors() -> None:
    """Let LLVM use the vectors of AVX-512, of which it takes half on Intel's processors: these loops gain a third."""
    features = llvm.get_host_cpu_features()
    if features.get("avx512f") and vars(config)["CPU_FEATURES"] is None:
        vars(config)["CPU_FEATURES"] = f"{features.flatten()},-prefer-256-bit"


_use_wide_vectors()


def depth(k: int) -> int:
    """Return the inner dimension to store: as it is."""
    return k


def workspace(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return memory that the next call of the same name takes over: a fresh page costs more than what is written.

    It is NumPy's, which asks the system for huge pages.
    """
    held = vars(_workspaces)
    memory, view = held.get(name, (NOTHING, NOTHING))
    if view.shape != shape or view.dtype != dtype:
        size = math.prod(shape) * dtype.itemsize
        memory = memory if memory.numel() >= size else torch.from_numpy(np.empty(size, dtype=np.int8))
        view = memory[:size].view(dtype).view(shape)
        held[name] = memory, view
    return view


def release_workspace() -> None:
    """Give back this thread's workspace, a few bytes for each operand entry and modulus of the largest product."""
    vars(_workspaces).clear()


def multiply_int8(a_MK: torch.Tensor, b_NK: torch.Tensor, out_MN: torch.Tensor) -> None:
    """Write A B^T (int32) of int8 operands; in FP64, to the same bits, where the INT8 product is not exact."""
    if int8_is_exact():
        torch._int_mm(a_MK, b_NK.T, out=out_MN)
    else:
        out_MN.copy_(a_MK.double() @ b_NK.double().T)


@cache
def int8_is_exact() -> bool:
    """Say whether this processor multiplies full-range INT8 exactly, with a warning if it does not.

    On x86 processors without VNNI, oneDNN adds pairs of u8 x s8 products in saturating 16-bit arithmetic and
    returns wrong sums of full-range int8 without a word.
    """
    exact = all(_product_is_exact(shape, digit) for shape in SELF_TEST_SHAPES for digit in (127, -127))
    if not exact:
        message = "torch._int_mm saturates on this processor (no VNNI?): products in FP64 instead, same bits, slower."
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    return exact


def _product_is_exact(shape: tuple[int, int, int], digit: int) -> bool:
    M, K, N = shape
    a, b = torch.full((M, K), abs(digit), dtype=torch.int8), torch.full((N, K), digit, dtype=torch.int8)
    return bool((torch._int_mm(a, b.T) == K * abs(digit) * digit).all())


def row_scales(x_RK: torch.Tensor) -> RowScales:
    """Measure each row (contiguous FP64)."""
    R = len(x_RK)
    exponent_R, span_R = torch.empty((2, R), dtype=torch.int64)
    energy_R, sum_R = torch.empty((2, R), dtype=torch.float64)
    finite_R = torch.empty(R, dtype=torch.bool)
    scales = RowScales(exponent_R, energy_R, sum_R, span_R, finite_R)
    _row_scales_loop(x_RK.numpy(), *(field.numpy() for field in scales))
    return scales


@njit(parallel=True, cache=True)
def _row_scales_loop(
    x_RK: np.ndarray,
    exponent_R: np.ndarray,
    energy_R: np.ndarray,
    sum_R: np.ndarray,
    span_R: np.ndarray,
    finite_R: np.ndarray,
) -> None:
    R, K = x_RK.shape
    for i in prange(R):
        peak = _greatest(x_RK[i].view(np.int64))
        finite_R[i] = peak < INFINITY_PATTERN
        known = 0 < peak < INFINITY_PATTERN
        exponent = _exponent(peak) if known else 0
        half = (ENERGY_BITS - exponent) // 2
        first, second = _power_of_two(half), _power_of_two(ENERGY_BITS - exponent - half)
        q_K = np.zeros(K)
        for j in range(K if known else 0):
            q_K[j] = np.ceil(abs(x_RK[i, j] * first * second))
        energy_R[i], sum_R[i] = _energy_and_sum(q_K)
        exponent_R[i] = exponent
        span_R[i] = exponent + 1 - _exponent(_lowest_unit(x_RK[i].view(np.int64))) if known else 0


@njit(cache=True)
def _greatest(pattern_K: np.ndarray) -> Integer:
    """Return the bits of the greatest |x|."""
    greatest = np.int64(0)
    for j in range(pattern_K.size):
        greatest = max(greatest, pattern_K[j] & MAGNITUDE_MASK)
    return greatest


@njit(cache=True)
def _lowest_unit(pattern_K: np.ndarray) -> Integer:
    """Return the bits of the least power of two that is the lowest bit set of an entry; not all may be zero."""
    least = np.uint64(INFINITY_PATTERN)
    for j in range(pattern_K.size):
        magnitude = pattern_K[j] & MAGNITUDE_MASK
        rest = magnitude & (magnitude - 1)
        unit = np.int64(magnitude).view(np.float64) - np.int64(rest).view(np.float64)
        bits = np.uint64(np.float64(unit).view(np.int64)) if magnitude & FRACTION_MASK else np.uint64(magnitude)
        least = min(least, bits - np.uint64(1))  # less one, so that zero wraps to the greatest: this loop vectorizes
    return np.int64(least + np.uint64(1))


@njit(cache=True, fastmath={"reassoc"})  # sums of integers below 2^53 are exact in any order
def _energy_and_sum(q_K: np.ndarray) -> tuple[float, float]:
    energy, total = 0.0, 0.0
    for j in range(q_K.size):
        energy += q_K[j] * q_K[j]
        total += q_K[j]
    return energy, total


@njit(inline="always")
def _significand(pattern: Integer) -> tuple[Integer, Integer]:
    biased = (pattern >> FRACTION_BITS) & EXPONENT_MASK
    return (pattern & FRACTION_MASK) | (np.int64(min(biased, 1)) << FRACTION_BITS), max(biased, 1)


@njit(inline="always")
def _shifted(significand: Integer, shift: Integer) -> Integer:
    return significand << min(max(-shift, 0), WIDEST_SHIFT) >> min(max(shift, 0), WIDEST_SHIFT)


@njit(inline="always")
def _exponent(magnitude: Integer) -> Integer:
    """Return the least e with |x| < 2^e for the bits of |x| > 0."""
    biased = magnitude >> FRACTION_BITS
    if biased == 0:  # subnormal: the integer `magnitude` in units of 2^-1074, and as a double it is normal
        return (np.float64(magnitude).view(np.int64) >> FRACTION_BITS) + 2 - DOUBLE_BIAS - SIGNIFICAND_BIAS
    return biased + 1 - DOUBLE_BIAS


def split(x_RK: torch.Tensor, scales: RowScales, numbers: Sequence[int], bits: int, digits_RSK: torch.Tensor) -> None:
    """Write the signed digits of each row, int8."""
    exponent_R, finite_R = scales.exponent_R.numpy(), scales.finite_R.numpy()
    _split_loop(x_RK.view(torch.int64).numpy(), exponent_R, finite_R, np.array(numbers), bits, digits_RSK.numpy())


@njit(parallel=True, cache=True)
def _split_loop(
    pattern_RK: np.ndarray,
    exponent_R: np.ndarray,
    finite_R: np.ndarray,
    numbers_S: np.ndarray,
    bits: int,
    digits_RSK: np.ndarray,
) -> None:
    R, K = pattern_RK.shape
    for i in prange(R):
        mask = (1 << bits) - 1 if finite_R[i] else 0
        for s in range(numbers_S.size):
            drop = SIGNIFICAND_BIAS + exponent_R[i] - bits * numbers_S[s]
            for j in range(K):
                significand, biased = _significand(pattern_RK[i, j])
                digit = _shifted(significand, drop - biased) & mask
                digits_RSK[i, s, j] = -digit if pattern_RK[i, j] < 0 else digit


def accumulate(
    products_PMN: torch.Tensor, diagonal_P: Sequence[int], bits: int, exponent_M: torch.Tensor, exponent_N: torch.Tensor
) -> torch.Tensor:
    """Return 2^(e_i + f_j) sum_t 2^(-b (t + 1)) D_t, D_t the sum of the products (int32) of diagonal t."""
    c_MN = torch.empty(products_PMN.shape[1:], dtype=torch.float64)
    diagonals_P, exponents = np.array(diagonal_P), (exponent_M.numpy(), exponent_N.numpy())
    _accumulate_loop(products_PMN.numpy(), diagonals_P, bits, *exponents, c_MN.numpy())
    return c_MN


@njit(parallel=True, cache=True)
def _accumulate_loop(
    products_PMN: np.ndarray,
    diagonal_P: np.ndarray,
    bits: int,
    exponent_M: np.ndarray,
    exponent_N: np.ndarray,
    c_MN: np.ndarray,
) -> None:
    P, M, N = products_PMN.shape
    for i in prange(M):
        c_MN[i] = 0.0
        sum_N = np.zeros(N, dtype=np.int64)
        for at in range(P - 1, -1, -1):
            sum_N += products_PMN[at, i]
            if at == 0 or diagonal_P[at - 1] != diagonal_P[at]:  # the sum of a diagonal is complete
                for j in range(N):
                    c_MN[i, j] = c_MN[i, j] * 2.0**-bits + sum_N[j]
                sum_N[:] = 0
        for j in range(N):
            c_MN[i, j] = _scaled(c_MN[i, j], exponent_M[i] + exponent_N[j] - 2 * bits)


@njit(inline="always")
def _scaled(c: float, exponent: Integer) -> float:
    first = min(max(exponent, -FIRST_SCALING), FIRST_SCALING)
    second = min(max(exponent - first, 1 - DOUBLE_BIAS), DOUBLE_BIAS)
    return c * _power_of_two(first) * _power_of_two(second)


@njit(inline="always")
def _power_of_two(exponent: Integer) -> float:
    return np.int64((exponent + DOUBLE_BIAS) << FRACTION_BITS).view(np.float64)


def residues(
    x_RK: torch.Tensor, shift_R: torch.Tensor, finite_R: torch.Tensor, constants: Moduli, residues_LRK: torch.Tensor
) -> None:
    """Write trunc(2^shift x) mod p for each row and modulus, int8 in [-p / 2, p / 2]."""
    reducers = (constants.moduli_L, constants.inverses_L, constants.carries_L)
    _residues_loop(x_RK.numpy(), shift_R.numpy(), finite_R.numpy(), *reducers, residues_LRK.numpy())


@njit(parallel=True, cache=True, fastmath={"contract"})  # every operation is exact: contracting changes no bit
def _residues_loop(
    x_RK: np.ndarray,
    shift_R: np.ndarray,
    finite_R: np.ndarray,
    moduli_L: np.ndarray,
    inverses_L: np.ndarray,
    carries_L: np.ndarray,
    residues_LRK: np.ndarray,
) -> None:
    R, K = x_RK.shape
    for i in prange(R):
        half = shift_R[i] // 2
        first, second = _power_of_two(half), _power_of_two(shift_R[i] - half)
        high_K, low_K = np.zeros(K), np.zeros(K)
        for j in range(K if finite_R[i] else 0):
            integer = np.trunc(x_RK[i, j] * first * second)
            high_K[j] = np.trunc(integer * (1 / LOW_UNIT))
            low_K[j] = integer - high_K[j] * LOW_UNIT
        for at in range(moduli_L.size):
            p, inverse, carry = moduli_L[at], inverses_L[at], carries_L[at]
            for j in range(K):
                congruent = high_K[j] * carry + low_K[j]
                residues_LRK[at, i, j] = np.int8(np.int32(_symmetric_residue(congruent, p, inverse)))


def reconstruct(
    products_PMN: torch.Tensor, constants: Moduli, exponent_M: torch.Tensor, exponent_N: torch.Tensor
) -> torch.Tensor:
    """Return 2^(e_i + f_j) x, x the integer of least magnitude with the residues of the products (int32)."""
    L = len(constants.moduli_L)
    c_MN = torch.empty(products_PMN.shape[1:], dtype=torch.float64)
    products_LBMN = products_PMN.view(L, -1, *c_MN.shape).numpy()
    known = (*_in_groups(L), constants.product_3, constants.inverse_product)
    _reconstruct_loop(products_LBMN, *known, exponent_M.numpy(), exponent_N.numpy(), c_MN.numpy())
    return c_MN


@cache
def _in_groups(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return moduli, their inverses and weights, with moduli of no weight to fill the last group."""
    constants, spare = moduli(count), -count % GROUP
    moduli_L = np.pad(constants.moduli_L, (0, spare), constant_values=1)
    return moduli_L, 1 / moduli_L, np.pad(constants.weights_3L, ((0, 0), (0, spare)))


@njit(parallel=True, cache=True)
def _reconstruct_loop(
    products_LBMN: np.ndarray,
    moduli_L: np.ndarray,
    inverses_L: np.ndarray,
    weights_3L: np.ndarray,
    product_3: np.ndarray,
    inverse_product: float,
    exponent_M: np.ndarray,
    exponent_N: np.ndarray,
    c_MN: np.ndarray,
) -> None:
    L, B, M, N = products_LBMN.shape  # B blocks of the inner dimension
    for i in prange(M):
        sums_3N = np.zeros((3, N))
        for at in range(0, L, GROUP):
            if B == 1:
                _add_residues(products_LBMN, i, moduli_L, inverses_L, weights_3L, at, sums_3N)
            else:
                total_L11N = np.ascontiguousarray(products_LBMN[:, :, i].sum(axis=1)).reshape((L, 1, 1, N))
                _add_residues(total_L11N, 0, moduli_L, inverses_L, weights_3L, at, sums_3N)
        for j in range(N):
            quotient = np.rint(sums_3N[0, j] * inverse_product)
            first = sums_3N[0, j] - product_3[0] * quotient
            second = sums_3N[1, j] - product_3[1] * quotient
            third = sums_3N[2, j] - product_3[2] * quotient
            head = first + second  # and the tail of this sum without error (Knuth's TwoSum)
            rest = head - first
            integer = head + (((first - (head - rest)) + (second - rest)) + third)
            c_MN[i, j] = _scaled(integer, exponent_M[i] + exponent_N[j])


@njit(fastmath={"contract"}, cache=True)  # every operation is exact: contracting changes no bit
def _add_residues(
    products_L1MN: np.ndarray,
    i: int,
    moduli_L: np.ndarray,
    inverses_L: np.ndarray,
    weights_3L: np.ndarray,
    at: int,
    sums_3N: np.ndarray,
) -> None:
    """Add the residues of GROUP moduli times their weights, row i, to the three sums."""
    last = len(products_L1MN) - 1
    c0, c1 = products_L1MN[at, 0, i], products_L1MN[min(at + 1, last), 0, i]
    c2, c3 = products_L1MN[min(at + 2, last), 0, i], products_L1MN[min(at + 3, last), 0, i]
    p0, p1, p2, p3 = moduli_L[at : at + GROUP]
    q0, q1, q2, q3 = inverses_L[at : at + GROUP]
    x0, x1, x2, x3 = weights_3L[0, at : at + GROUP]
    y0, y1, y2, y3 = weights_3L[1, at : at + GROUP]
    z0, z1, z2, z3 = weights_3L[2, at : at + GROUP]
    for j in range(sums_3N.shape[1]):
        r0, r1 = _symmetric_residue(c0[j], p0, q0), _symmetric_residue(c1[j], p1, q1)
        r2, r3 = _symmetric_residue(c2[j], p2, q2), _symmetric_residue(c3[j], p3, q3)
        sums_3N[0, j] += x0 * r0 + x1 * r1 + x2 * r2 + x3 * r3
        sums_3N[1, j] += y0 * r0 + y1 * r1 + y2 * r2 + y3 * r3
        sums_3N[2, j] += z0 * r0 + z1 * r1 + z2 * r2 + z3 * r3


@njit(inline="always")
def _symmetric_residue(x: float, p: float, inverse: float) -> float:
    return x - ((x * inverse + NEAREST) - NEAREST) * p


def propagate(
    c_MN: torch.Tensor, a_MK: torch.Tensor, b_NK: torch.Tensor, finite_M: torch.Tensor, finite_N: torch.Tensor
) -> None:
    """Write what IEEE arithmetic makes of the entries that an infinity or a NaN reaches, in place.

    Signs stand for finite numbers, so that no finite partial sum overflows on the way.
    """
    if finite_M.all() and finite_N.all():
        return
    rows, columns = ~finite_M, ~finite_N
    a_signs_MK, b_signs_NK = _signs_of_finite(a_MK), _signs_of_finite(b_NK)
    c_MN[rows] = a_signs_MK[rows] @ b_signs_NK.T
    c_MN[:, columns] = a_signs_MK @ b_signs_NK[columns].T
    c_MN[c_MN.isnan()] = torch.nan  # one pattern of bits, whatever the product made


def _signs_of_finite(x_RK: torch.Tensor) -> torch.Tensor:
    return torch.where(x_RK.isfinite(), x_RK.sign(), x_RK)


def worst_ratio(
    lower_MN: torch.Tensor, x_M: torch.Tensor, y_M: torch.Tensor, x_N: torch.Tensor, y_N: torch.Tensor
) -> tuple[float, float]:
    """Return the greatest (x_i y_j + y_i x_j) / lower_ij, and the least lower_ij, where x_i y_j + y_i x_j > 0."""
    worst_M, least_M = torch.empty((2, len(x_M)), dtype=torch.float64)
    arguments = (lower_MN, x_M, y_M, x_N, y_N, worst_M, least_M)
    _worst_ratio_loop(*(argument.numpy() for argument in arguments))
    return float(worst_M.max()), float(least_M.min())


@njit(parallel=True, cache=True, error_model="numpy")
def _worst_ratio_loop(
    lower_MN: np.ndarray,
    x_M: np.ndarray,
    y_M: np.ndarray,
    x_N: np.ndarray,
    y_N: np.ndarray,
    worst_M: np.ndarray,
    least_M: np.ndarray,
) -> None:
    M, N = lower_MN.shape
    for i in prange(M):
        worst, least = 0.0, np.inf
        for j in range(N):
            above = x_M[i] * y_N[j] + y_M[i] * x_N[j]
            worst = max(worst, above / lower_MN[i, j] if above > 0 else 0.0)
            least = min(least, lower_MN[i, j] if above > 0 else np.inf)
        worst_M[i], least_M[i] = worst, least

"""Radial profiles of the kernels, compiled for CPUs: functions of the squared distance that vectorize.

Dimension letters: J points of one side, I points of the other side, in a block that stays in the cache; N points,
K right-hand sides.
"""

from __future__ import annotations

import math

import llvmlite.binding as llvm
import numpy as np
from numba import config, njit, prange

ROWS = 64
COLUMNS = 128
SQRT_3 = math.sqrt(3.0)
LOG2_E = 1.0 / math.log(2.0)
LN_2_HIGH = 6.93147180369123816490e-01  # 21 trailing zeros: its product with an exponent is exact (fdlibm)
LN_2_LOW = 1.90821492927058770002e-10
NEAREST = 1.5 * 2.0**52  # added and taken off again, it leaves the nearest integer
FRACTION_BITS = 52
SMALLEST_EXPONENT = 708.0  # exp(-708) is the last that is no subnormal number
CODES = {"laplace": 0, "yukawa": 1, "gaussian": 2, "exponential": 3, "matern": 4}


def _use_wide_vectors() -> None:
    """Let LLVM use the vectors of AVX-512, of which it takes half on Intel's processors."""
    features = llvm.get_host_cpu_features()
    if features.get("avx512f") and vars(config)["CPU_FEATURES"] is None:
        vars(config)["CPU_FEATURES"] = f"{features.flatten()},-prefer-256-bit"


_use_wide_vectors()


@njit(inline="always")
def decay(t: float) -> float:
    """Return ``exp(-t)`` for ``t >= 0`` within 2 units in the last place, and 0 beyond ``t = 708``.

    The one of the C library is called for each number on its own; this one vectorizes. Taylor's series to degree 13 on
    ``|x| <= ln(2) / 2`` leaves 1e-17.
    """
    shifted = NEAREST - t * LOG2_E
    n = shifted - NEAREST
    x = (-t - n * LN_2_HIGH) - n * LN_2_LOW
    p = 1.0 / 6227020800.0
    p = p * x + 1.0 / 479001600.0
    p = p * x + 1.0 / 39916800.0
    p = p * x + 1.0 / 3628800.0
    p = p * x + 1.0 / 362880.0
    p = p * x + 1.0 / 40320.0
    p = p * x + 1.0 / 5040.0
    p = p * x + 1.0 / 720.0
    p = p * x + 1.0 / 120.0
    p = p * x + 1.0 / 24.0
    p = p * x + 1.0 / 6.0
    p = p * x + 0.5
    p = p * x * x + x + 1.0
    power = np.float64(p).view(np.int64) + (np.float64(shifted).view(np.int64) << FRACTION_BITS)
    return 0.0 if t > SMALLEST_EXPONENT else np.int64(power).view(np.float64)


@njit(cache=True, error_model="numpy", fastmath={"contract"})
def evaluate(code: int, scale: float, squared_I: np.ndarray) -> None:
    """Overwrite squared distances by the values of the kernel with this code at this length scale."""
    if code == 0:
        for i in range(squared_I.size):
            squared_I[i] = 1.0 / math.sqrt(squared_I[i])
    elif code == 1:
        for i in range(squared_I.size):
            distance = math.sqrt(squared_I[i])
            squared_I[i] = decay(distance / scale) / distance
    elif code == 2:
        for i in range(squared_I.size):
            squared_I[i] = decay(squared_I[i] / (scale * scale))
    elif code == 3:
        for i in range(squared_I.size):
            squared_I[i] = decay(math.sqrt(squared_I[i]) / scale)
    else:
        for i in range(squared_I.size):
            t = SQRT_3 * math.sqrt(squared_I[i]) / scale
            squared_I[i] = (1.0 + t) * decay(t) if t <= SMALLEST_EXPONENT else 0.0


@njit(parallel=True, cache=True, error_model="numpy", fastmath={"contract"})
def product(
    code: int, scale: float, diagonal: float, point_3N: np.ndarray, x_NK: np.ndarray, product_KN: np.ndarray
) -> None:
    """Multiply the kernel matrix, never stored, with K vectors; the order of the sums depends on N alone."""
    K, N = product_KN.shape
    for block in prange((N + ROWS - 1) // ROWS):
        start, stop = block * ROWS, min(block * ROWS + ROWS, N)
        row_3I, value_I = point_3N[:, start:stop].copy(), np.empty(stop - start)
        sum_KI, total_KI = np.empty((K, stop - start)), np.zeros((K, stop - start))
        for first in range(0, N, COLUMNS):
            sum_KI[:] = 0.0
            for j in range(first, min(first + COLUMNS, N)):
                squared_distances(row_3I, point_3N[0, j], point_3N[1, j], point_3N[2, j], value_I)
                evaluate(code, scale, value_I)
                if start <= j < stop:
                    value_I[j - start] = diagonal
                for k in range(K):
                    _add(value_I, x_NK[j, k], sum_KI[k])
            total_KI += sum_KI
        product_KN[:, start:stop] = total_KI


@njit(cache=True, fastmath={"contract"})
def squared_distances(row_3I: np.ndarray, x: float, y: float, z: float, squared_I: np.ndarray) -> None:
    """Write the squared distances of points, a coordinate a row, from one point."""
    for i in range(squared_I.size):
        dx, dy, dz = row_3I[0, i] - x, row_3I[1, i] - y, row_3I[2, i] - z
        squared_I[i] = dx * dx + dy * dy + dz * dz


@njit(cache=True, fastmath={"contract"})
def _add(value_I: np.ndarray, factor: float, sum_I: np.ndarray) -> None:
    for i in range(value_I.size):
        sum_I[i] += value_I[i] * factor

"""SciPy's BLAS and LAPACK for loops that numba compiles, in single and double precision, rows contiguous as in C.

A matrix may be a part of a wider one: its row stride is the leading dimension. Fortran stores by columns, so what
the libraries are given are transposes; a lower triangle here is an upper one there.

Each call is one library call: inside `one_blas_thread`, on the thread that makes it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from numba import njit, types
from numba.extending import get_cython_function_address, overload
from threadpoolctl import ThreadpoolController

ROUTINES = {
    "gemm": ("blas", 13),
    "trsm": ("blas", 11),
    "potrf": ("lapack", 5),
    "getrf": ("lapack", 6),
    "getrs": ("lapack", 9),
}
PREFIX = {types.float32: "s", types.float64: "d"}
LEFT, RIGHT, UPPER, LOWER, NO, YES, UNIT = (ord(flag) for flag in "LRULNTU")


def _external(prefix: str, routine: str) -> types.ExternalFunction:
    # known to LLVM by a name, not an address, so that compiled loops can be cached
    library, arguments = ROUTINES[routine]
    symbol = f"kinji_{prefix}{routine}"
    llvm.add_symbol(symbol, get_cython_function_address(f"scipy.linalg.cython_{library}", prefix + routine))
    return types.ExternalFunction(symbol, types.void(*[types.intp] * arguments))


_EXTERNAL: dict[tuple[Any, str], Any] = {
    (kind, name): _external(prefix, name) for kind, prefix in PREFIX.items() for name in ROUTINES
}


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()


_inside = threading.local()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keep the BLAS libraries to one thread for each thread that calls them; at no cost where that is so already."""
    if vars(_inside).get("limited"):
        yield
        return
    _inside.limited = True
    try:
        with _controller().limit(limits=1, user_api="blas"):
            yield
    finally:
        _inside.limited = False


@njit(cache=True, inline="always")
def _width(a: np.ndarray) -> int:
    return max(a.strides[0] // a.itemsize, a.shape[1], 1)  # NumPy's strides are 0 where a size is


def gemm(trans_a, trans_b, alpha, a, b, beta, c):  # type: ignore[no-untyped-def]
    """Write ``alpha op(a) op(b) + beta c`` into ``c``, shape ``(m, n)``; ``op`` transposes if asked to."""
    raise NotImplementedError("compiled code only")


@overload(gemm)
def _gemm(trans_a, trans_b, alpha, a, b, beta, c):  # type: ignore[no-untyped-def]
    external = _EXTERNAL[a.dtype, "gemm"]

    def compiled(trans_a, trans_b, alpha, a, b, beta, c):  # type: ignore[no-untyped-def]
        m, n = c.shape
        k = a.shape[0] if trans_a else a.shape[1]
        if m == 0 or n == 0:
            return
        flags = np.array([YES if trans_b else NO, YES if trans_a else NO], dtype=np.uint8)
        sizes = np.array([n, m, k, _width(b), _width(a), _width(c)], dtype=np.int32)
        scales = np.array([alpha, beta]).astype(c.dtype)
        at, to, by = flags.ctypes.data, sizes.ctypes.data, scales.ctypes.data
        x, y, z = b.ctypes.data, a.ctypes.data, c.ctypes.data
        external(at, at + 1, to, to + 4, to + 8, by, x, to + 12, y, to + 16, by + scales.itemsize, z, to + 20)

    return compiled


def solve_triangular(left, lower, trans, unit, a, b):  # type: ignore[no-untyped-def]
    """Replace ``b``, shape ``(m, n)``, by ``op(a)^-1 b`` or, not `left`, by ``b op(a)^-1``; ``a`` is triangular."""
    raise NotImplementedError("compiled code only")


@overload(solve_triangular)
def _solve_triangular(left, lower, trans, unit, a, b):  # type: ignore[no-untyped-def]
    external = _EXTERNAL[a.dtype, "trsm"]

    def compiled(left, lower, trans, unit, a, b):  # type: ignore[no-untyped-def]
        m, n = b.shape
        if m == 0 or n == 0:
            return
        side, triangle = RIGHT if left else LEFT, UPPER if lower else LOWER
        flags = np.array([side, triangle, YES if trans else NO, UNIT if unit else NO], dtype=np.uint8)
        sizes = np.array([n, m, _width(a), _width(b)], dtype=np.int32)
        one = np.ones(1, dtype=b.dtype)
        at, to = flags.ctypes.data, sizes.ctypes.data
        x, y = a.ctypes.data, b.ctypes.data
        external(at, at + 1, at + 2, at + 3, to, to + 4, one.ctypes.data, x, to + 8, y, to + 12)

    return compiled


def cholesky(a):  # type: ignore[no-untyped-def]
    """Replace the lower triangle of ``a`` by its Cholesky factor; return 0, or the first pivot that fails."""
    raise NotImplementedError("compiled code only")


@overload(cholesky)
def _cholesky(a):  # type: ignore[no-untyped-def]
    external = _EXTERNAL[a.dtype, "potrf"]

    def compiled(a):  # type: ignore[no-untyped-def]
        if len(a) == 0:
            return 0
        flag, sizes = np.array([UPPER], dtype=np.uint8), np.array([len(a), _width(a), 0], dtype=np.int32)
        to = sizes.ctypes.data
        external(flag.ctypes.data, to, a.ctypes.data, to + 4, to + 8)
        return sizes[2]

    return compiled


def lu(a, pivots):  # type: ignore[no-untyped-def]
    """Replace ``a`` by the LU factors of its transpose; return 0, or the first pivot that is zero."""
    raise NotImplementedError("compiled code only")


@overload(lu)
def _lu(a, pivots):  # type: ignore[no-untyped-def]
    external = _EXTERNAL[a.dtype, "getrf"]

    def compiled(a, pivots):  # type: ignore[no-untyped-def]
        if len(a) == 0:
            return 0
        sizes = np.array([len(a), _width(a), 0], dtype=np.int32)
        to = sizes.ctypes.data
        external(to, to, a.ctypes.data, to + 4, pivots.ctypes.data, to + 8)
        return sizes[2]

    return compiled

"""SciPy's BLAS and LAPACK on symmetric and triangular matrices, in single or double precision, in place.

Of a symmetric or triangular matrix the lower triangle is read and written; rows are contiguous, as in C.
A matrix may be a part of a wider one: its row stride is the leading dimension. Fortran stores by columns, so what the
libraries are given are transposes, and a lower triangle here is an upper one there. Calls leave Python's lock.

OpenBLAS, which SciPy's wheels carry, runs 512-bit kernels on AMD's processors too, unlike the MKL behind
``torch.linalg``: on one core of an EPYC of family 26 a factorization of 4608 rows takes 0.17 instead of 0.50 seconds.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cython_blas, cython_lapack

Matrix = NDArray[Any]
TRIANGLE = 64
"""Largest triangle that LAPACK inverts; in halves, with products between them, is faster."""
TILE = 128
"""Columns that are transposed at a time: with those of four times as many rows they stay in the cache."""


def gram(x_nk: Matrix, out_nn: Matrix, scale: float, *, fresh: bool) -> None:
    """Add ``scale x x^T`` to the lower triangle of a symmetric matrix, or overwrite that if ``fresh``."""
    (n, k), (transposed, width) = x_nk.shape, _operand(x_nk)
    before = 0.0 if fresh else 1.0
    _call("syrk", out_nn, "U", transposed, n, k, float(scale), x_nk, width, before, out_nn, _width(out_nn))


def subtract_product(c_nm: Matrix, x_nk: Matrix, y_mk: Matrix) -> None:
    """Replace ``c`` by ``c - x y^T``; factors may be stored by columns."""
    (n, m), k = c_nm.shape, x_nk.shape[1]
    if not k:
        return
    (by_y, width_y), (by_x, width_x) = _operand(y_mk), _operand(x_nk)
    turned = "N" if by_x == "T" else "T"
    _call("gemm", c_nm, by_y, turned, m, n, k, -1.0, y_mk, width_y, x_nk, width_x, 1.0, c_nm, _width(c_nm))


def cholesky(a_nn: Matrix) -> bool:
    """Replace the lower triangle by the Cholesky factor; False if the matrix is not positive definite."""
    failed = ctypes.c_int()
    _call("potrf", a_nn, "U", len(a_nn), a_nn, _width(a_nn), failed)
    return failed.value == 0


def times_triangle(x_kn: Matrix, lower_nn: Matrix) -> None:
    """Replace ``x`` by ``x L``, ``L`` a lower triangle."""
    _multiply("L", "N", 1.0, lower_nn, x_kn)


def times_transposed_triangle(x_kn: Matrix, lower_nn: Matrix) -> None:
    """Replace ``x`` by ``x L^T``, ``L`` a lower triangle."""
    _multiply("L", "T", 1.0, lower_nn, x_kn)


def triangle_times(lower_nn: Matrix, x_nm: Matrix) -> None:
    """Replace ``x`` by ``L x``, ``L`` a lower triangle."""
    _multiply("R", "N", 1.0, lower_nn, x_nm)


def transposed_triangle_times(lower_nn: Matrix, x_nm: Matrix) -> None:
    """Replace ``x`` by ``L^T x``, ``L`` a lower triangle."""
    _multiply("R", "T", 1.0, lower_nn, x_nm)


def invert_triangle(lower_nn: Matrix) -> None:
    """Replace a lower triangle without zeros on its diagonal by its inverse."""
    n = len(lower_nn)
    if n <= TRIANGLE:
        _call("trtri", lower_nn, "U", "N", n, lower_nn, _width(lower_nn), ctypes.c_int())
        return
    first, last = slice(0, n // 2), slice(n // 2, n)
    invert_triangle(lower_nn[first, first])
    invert_triangle(lower_nn[last, last])
    times_triangle(lower_nn[last, first], lower_nn[first, first])
    _multiply("R", "N", -1.0, lower_nn[last, last], lower_nn[last, first])


def square_triangle(lower_nn: Matrix) -> None:
    """Replace a lower triangle ``L`` by that of ``L^T L``."""
    _call("lauum", lower_nn, "U", len(lower_nn), lower_nn, _width(lower_nn), ctypes.c_int())


def mirror(lower_nn: Matrix) -> None:
    """Copy the lower triangle to the upper one."""
    for start in range(0, len(lower_nn), TILE):
        stop = min(start + TILE, len(lower_nn))
        diagonal = lower_nn[start:stop, start:stop]
        diagonal[:] = np.tril(diagonal) + np.tril(diagonal, -1).T
        _transpose(lower_nn[stop:, start:stop], lower_nn[start:stop, stop:])


def times_symmetric(a_nn: Matrix, x_n: Matrix) -> Matrix:
    """Return the product of a symmetric matrix, of which the lower triangle is read, with a vector."""
    product_n = np.empty_like(x_n)
    _call("symv", a_nn, "U", len(a_nn), 1.0, a_nn, _width(a_nn), x_n, 1, 0.0, product_n, 1)
    return product_n


def _transpose(block_nm: Matrix, out_mn: Matrix) -> None:
    """Copy by way of memory whose rows, unlike those of many matrices, are no multiple of a power of two apart."""
    n, m = block_nm.shape
    tile = np.empty((4 * TILE, TILE + 8), dtype=block_nm.dtype)
    for row in range(0, n, 4 * TILE):
        for column in range(0, m, TILE):
            part = block_nm[row : row + 4 * TILE, column : column + TILE]
            copy = tile[: part.shape[0], : part.shape[1]]
            copy[:] = part
            out_mn[column : column + TILE, row : row + 4 * TILE] = copy.T


def _multiply(side: str, transposed: str, scale: float, lower: Matrix, x_nm: Matrix) -> None:
    n, m = x_nm.shape
    _call("trmm", x_nm, side, "U", transposed, "N", m, n, scale, lower, _width(lower), x_nm, _width(x_nm))


def _operand(matrix: Matrix) -> tuple[str, int]:
    """Return whether Fortran takes what is stored for the transpose, and the leading dimension."""
    by_rows = matrix.strides[1] == matrix.itemsize
    return ("T", _width(matrix)) if by_rows else ("N", _width(matrix.T))


def _width(matrix: Matrix) -> int:
    return max(matrix.strides[0] // matrix.itemsize, matrix.shape[1], 1)  # strides mean nothing where a size is 1


def _call(name: str, like: Matrix, *arguments: Any) -> None:
    single = like.dtype == np.float32
    routine = _routine(("s" if single else "d") + name)
    real = ctypes.c_float if single else ctypes.c_double
    routine(*[_passed(argument, real) for argument in arguments])


def _passed(argument: Any, real: type[Any]) -> Any:
    """Return what Fortran is given: an address of everything."""
    if isinstance(argument, np.ndarray):
        return ctypes.c_void_p(argument.ctypes.data)
    if isinstance(argument, str):
        return ctypes.byref(ctypes.c_char(argument.encode()))
    if isinstance(argument, int):
        return ctypes.byref(ctypes.c_int(argument))
    return ctypes.byref(argument if isinstance(argument, ctypes.c_int) else real(argument))


@cache
def _routine(name: str) -> Callable[..., None]:
    library = cython_blas if name in cython_blas.__pyx_capi__ else cython_lapack
    capsule = ctypes.py_object(library.__pyx_capi__[name])
    name_of, pointer_of = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_GetPointer
    name_of.restype, pointer_of.restype = ctypes.c_char_p, ctypes.c_void_p
    pointer_of.argtypes = [ctypes.py_object, ctypes.c_char_p]
    return ctypes.CFUNCTYPE(None)(pointer_of(capsule.value, name_of(capsule)))

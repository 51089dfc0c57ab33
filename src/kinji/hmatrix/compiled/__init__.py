"""The batched routines of `executor` on a CPU: loops over boxes compiled by numba, one BLAS thread for each worker."""

from kinji.hmatrix.compiled.entries import kernel_blocks, sketch
from kinji.hmatrix.compiled.factors import factorize, solve
from kinji.hmatrix.compiled.interpolation import interpolate
from kinji.hmatrix.compiled.pairs import multiply_pairs, project
from kinji.hmatrix.compiled.products import lifts, multiply, put_blocks, subtract_product, take

__all__ = [
    "factorize",
    "interpolate",
    "kernel_blocks",
    "lifts",
    "multiply",
    "multiply_pairs",
    "project",
    "put_blocks",
    "sketch",
    "solve",
    "subtract_product",
    "take",
]

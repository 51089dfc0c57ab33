"""FP64 products on the INT8 unit.

    from kinji.gemm import matmul

    product = matmul(a, b, error="dgemm")  # or error=2.0, in units of 2^-53 |A||B|
    product.value, product.scheme, product.count, product.bound

In the order the data flows: `operands` checks and measures them (`scales`); `ozaki_one` cuts them into slices, or
`ozaki_two` into residues of `moduli`; the kernels of `cpu` or `cuda`, one interface (`backend`), do the arithmetic.
`error` bounds what comes out, `matmul` turns that round: it takes the error, bounds |A||B| from below
(`lower_bound`), and picks scheme and count (`choice`).
`published_rule` is how the published code picks; `factorization` uses a product; `reference` judges it.
"""

from kinji.gemm.backend import release_workspace
from kinji.gemm.error import truncation_bound
from kinji.gemm.matmul import AccuracyError, Product, matmul
from kinji.gemm.ozaki_one import scheme_one
from kinji.gemm.ozaki_two import scheme_two
from kinji.gemm.published_rule import published_slice_count
from kinji.gemm.reference import Reference, sample_reference

__all__ = [
    "AccuracyError",
    "Product",
    "Reference",
    "matmul",
    "published_slice_count",
    "release_workspace",
    "sample_reference",
    "scheme_one",
    "scheme_two",
    "truncation_bound",
]

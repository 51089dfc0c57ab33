"""FP64 products on the INT8 unit.

In the order the data flows: `operands` checks them, `splitting` cuts them into slices, `products` multiplies
slices exactly, `accumulation` adds them up in FP64; `ozaki_one` is the whole. `error` bounds it, `reference`
judges it.
"""

from kinji.gemm.error import published_slice_count, truncation_bound
from kinji.gemm.ozaki_one import scheme_one
from kinji.gemm.reference import Reference, sample_reference

__all__ = ["Reference", "published_slice_count", "sample_reference", "scheme_one", "truncation_bound"]

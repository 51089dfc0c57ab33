"""Matrix products by the fastest path of the processor at hand.

Single precision on an x86 processor goes through oneDNN, which uses 512-bit vectors where there are any; the MKL behind
``torch.matmul`` does so on Intel's processors alone. On an AMD EPYC of family 26 this is 230 instead of 105 GFLOP/s a
core. Everything else is left to ``torch.matmul``.

Dimension letters: n rows of a matrix, k its columns, m rows of another one; ... groups, if any.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

SMALLEST = 96
"""Below this length of a side the call of oneDNN costs more than it gains."""
PANEL = 1024
"""Rows of a panel of a symmetric product: large enough for full speed, small enough to stay in the cache."""


@cache
def onednn_is_faster() -> bool:
    """Whether this build of torch has oneDNN's product, and the processor 512-bit vectors for it."""
    built = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return built and torch.backends.cpu.get_cpu_capability() == "AVX512"


def times_transposed(x_nk: Tensor, y_mk: Tensor) -> Tensor:
    """Return ``x y^T``; leading dimensions, if any, are groups."""
    if not _suits_onednn(x_nk, y_mk):
        return x_nk @ y_mk.mT
    dense_mk = y_mk if y_mk.is_contiguous() or y_mk.T.is_contiguous() else y_mk.contiguous()  # other strides: very slow
    return torch.ops.mkldnn._linear_pointwise(x_nk, dense_mk, None, "none", [], "")


def add_gram(x_nk: Tensor, out_nn: Tensor, *, scale: float, fresh: bool) -> None:
    """Add ``scale x x^T`` to a symmetric matrix, or overwrite it if ``fresh``; pairs of panels are multiplied once."""
    if x_nk.ndim > 2:
        product_nn = times_transposed(x_nk, x_nk).mul_(scale)
        out_nn.copy_(product_nn) if fresh else out_nn.add_(product_nn)
        return
    panels = [slice(start, start + PANEL) for start in range(0, len(x_nk), PANEL)]
    for k, rows in enumerate(panels):
        for columns in panels[k:]:
            block = times_transposed(x_nk[rows], x_nk[columns]).mul_(scale)
            _put(block, out_nn[rows, columns], fresh)
            if rows != columns:
                _put(block.T, out_nn[columns, rows], fresh)


def _put(block: Tensor, place: Tensor, fresh: bool) -> None:
    if fresh:
        place.copy_(block)
    else:
        place.add_(block)


def _suits_onednn(x_nk: Tensor, y_mk: Tensor) -> bool:
    single = x_nk.dtype == y_mk.dtype == torch.float32 and x_nk.device.type == "cpu"
    return single and x_nk.ndim == 2 and min(*x_nk.shape, len(y_mk)) >= SMALLEST and onednn_is_faster()

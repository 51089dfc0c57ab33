"""Matrix products by the fastest path of the processor at hand.

Single precision on an x86 processor goes through oneDNN, which uses 512-bit vectors where there are any; the MKL behind
``torch.matmul`` does so on Intel's processors alone. On an AMD EPYC of family 26 this is 230 instead of 105 GFLOP/s a
core. Everything else is left to ``torch.matmul``.

On CUDA devices factors are formed in TF32 where torch is told so, as that only rounds the data they are made of.
Inverses and what they are applied to stay in single precision: TF32 would lose the directions of large curvature.

Dimension letters: n rows of a matrix, k its columns, m rows of another one; ... groups, if any.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from kinji.kfac import lapack

logger = logging.getLogger(__name__)

SMALLEST = 96
"""Below this length of a side the call of oneDNN costs more than it gains."""


@cache
def onednn_is_faster() -> bool:
    """Whether this build of torch has oneDNN's product, and the processor 512-bit vectors for it."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    built = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    if not built:
        logger.warning("torch %s has no oneDNN product; products take torch.matmul, slower on AMD", torch.__version__)
    return built


@contextmanager
def full_precision() -> Iterator[None]:
    """Keep products of CUDA devices out of TF32."""
    products = torch.backends.cuda.matmul
    before = products.fp32_precision
    products.fp32_precision = "ieee"
    try:
        yield
    finally:
        products.fp32_precision = before


def times_transposed(x_nk: Tensor, y_mk: Tensor) -> Tensor:
    """Return ``x y^T``; leading dimensions, if any, are groups."""
    if not _suits_onednn(x_nk, y_mk):
        return x_nk @ y_mk.mT
    return torch.ops.mkldnn._linear_pointwise(x_nk, _dense(y_mk), None, "none", [], "")  # other strides: very slow


def add_gram(x_nk: Tensor, out_nn: Tensor, *, scale: float, fresh: bool) -> None:
    """Add ``scale x x^T`` to a symmetric matrix, or overwrite it if ``fresh``; its lower triangle is all that counts.

    Operands of another precision than the sum are multiplied as they are and summed in single precision on a CUDA
    device, and converted first on a CPU, where BLAS forms the one triangle.
    """
    if x_nk.dtype != out_nn.dtype and x_nk.is_cuda:
        product = _half_gram(x_nk).mul_(scale)
        out_nn.copy_(product) if fresh else out_nn.add_(product)
        return
    x_nk = x_nk.to(out_nn.dtype)
    if x_nk.is_cuda or x_nk.ndim > 2:
        add_product = out_nn.addmm_ if x_nk.ndim == 2 else out_nn.baddbmm_
        add_product(x_nk, x_nk.mT, beta=0 if fresh else 1, alpha=scale)
        return
    lapack.gram(_dense(x_nk).numpy(), out_nn.numpy(), scale, fresh=fresh)


def _dense(x_nk: Tensor) -> Tensor:
    return x_nk if x_nk.is_contiguous() or x_nk.T.is_contiguous() else x_nk.contiguous()


def _half_gram(x_nk: Tensor) -> Tensor:
    product = torch.mm if x_nk.ndim == 2 else torch.bmm
    return product(x_nk, x_nk.mT, out_dtype=torch.float32)


def _suits_onednn(x_nk: Tensor, y_mk: Tensor) -> bool:
    single = x_nk.dtype == y_mk.dtype == torch.float32 and x_nk.device.type == "cpu"
    return single and x_nk.ndim == 2 and min(*x_nk.shape, len(y_mk)) >= SMALLEST and onednn_is_faster()

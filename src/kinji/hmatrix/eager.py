"""The batched routines of `executor` in torch: cuBLAS and cuSOLVER batches on a GPU. Not yet run on a GPU.

Dimension letters: as in `executor`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kinji.hmatrix.executor import Factors, Method, Part
from kinji.hmatrix.kernels import Kernel, batches


def kernel_blocks(kernel: Kernel, points: Tensor, rowsPM: Tensor, columnsPQ: Tensor, out: Tensor) -> None:
    """See `executor.Executor`."""
    for batch in batches(len(out), 8 * out[0].numel(), points.device):
        out[batch] = kernel(points[rowsPM[batch]], points[columnsPQ[batch]]).to(out.dtype)


def sketch(kernel: Kernel, points: Tensor, rowsBM: Tensor, columnsBS: Tensor, randomSZ: Tensor) -> Tensor:
    """See `executor.Executor`."""
    boxes, size = rowsBM.shape
    sketchBMZ = randomSZ.new_empty(boxes, size, randomSZ.shape[1])
    for batch in batches(boxes, 8 * size * len(randomSZ), points.device):
        block = kernel(points[rowsBM[batch]], points[columnsBS[batch]])
        sketchBMZ[batch] = block.to(randomSZ.dtype) @ randomSZ
    return sketchBMZ


def interpolate(
    sketchBMZ: Tensor, rank: int, tolerance: float, largest: Callable[[int], int] = int
) -> tuple[Tensor, Tensor]:
    """Run a step for all boxes at a time; see `executor.Executor`."""
    boxes, size, _ = sketchBMZ.shape
    every = torch.arange(boxes, device=sketchBMZ.device)
    orderBM = torch.arange(size, device=sketchBMZ.device).repeat(boxes, 1)
    triangleBRM = sketchBMZ.new_zeros(boxes, rank, size)
    pivotBR = sketchBMZ.new_zeros(boxes, rank)
    for k in range(rank):
        squared, at = sketchBMZ[:, k:].square().sum(dim=2).max(dim=1)
        for rows in (sketchBMZ, orderBM, triangleBRM.mT):
            rows[every, k], rows[every, k + at] = rows[every, k + at].clone(), rows[every, k].clone()
        pivotBR[:, k] = squared.sqrt()
        length = torch.where(squared > 0, pivotBR[:, k], 1.0)
        triangleBRM[:, k, k] = length
        sketchBMZ[:, k] /= length[:, None]
        rest = sketchBMZ[:, k + 1 :]
        triangleBRM[:, k, k + 1 :] = (rest @ sketchBMZ[:, k, :, None])[:, :, 0]
        rest -= triangleBRM[:, k, k + 1 :, None] * sketchBMZ[:, None, k]
    kept = largest(max(1, int((pivotBR > tolerance * pivotBR[:, :1]).sum(dim=1).max())))
    triangle, rows = triangleBRM[:, :kept, :kept], triangleBRM[:, :kept, kept:]
    return orderBM, torch.linalg.solve_triangular(triangle, rows, upper=True).mT.contiguous()


def multiply(
    a: Tensor,
    b: Tensor,
    *,
    left: Tensor | None = None,
    right: Tensor | None = None,
    transpose_a: bool = False,
    transpose_b: bool = False,
) -> Tensor:
    """See `executor.Executor`."""
    a = a if left is None else a[left]
    b = b if right is None else b[right]
    return torch.bmm(a.mT if transpose_a else a, b.mT if transpose_b else b)


def factorize(aBCC: Tensor, method: Method) -> Factors:
    """See `executor.Executor`."""
    if method == "lu":
        return Factors(*torch.linalg.lu_factor_ex(aBCC))
    triangles, info = torch.linalg.cholesky_ex(aBCC)
    return Factors(triangles, None, info)


def solve(factors: Factors, bBCK: Tensor) -> Tensor:
    """See `executor.Executor`."""
    if factors.pivots is None:
        return torch.cholesky_solve(bBCK, factors.triangles)
    return torch.linalg.lu_solve(factors.triangles, factors.pivots, bBCK)


def multiply_pairs(blocksPMM: Tensor, pairs: Tensor, xBMK: Tensor, own: int, part: Part = "both") -> Tensor:
    """See `executor.Executor`."""
    out = torch.zeros_like(xBMK)
    for batch in batches(len(pairs) - own, xBMK[0].nbytes, xBMK.device):
        blocks, (i, j) = blocksPMM[own:][batch], pairs[own:][batch].T
        if part != "upper":
            out.index_add_(0, i, blocks @ xBMK[j])
        if part != "lower":
            distinct = i != j
            out.index_add_(0, j[distinct], blocks[distinct].mT @ xBMK[i[distinct]])
    return out

"""The batched routines of `executor` in torch: cuBLAS and cuSOLVER batches on a GPU.

Nothing here waits for the device, but `interpolate` once, for the rank.

Dimension letters: as in `executor`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kinji.hmatrix.executor import Factors, Method, Numbers
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
            rows[:, k], rows[every, k + at] = rows[every, k + at], rows[:, k].clone()
        pivotBR[:, k] = squared.sqrt()
        triangleBRM[:, k, k] = torch.where(squared > 0, pivotBR[:, k], 1.0)  # where nothing is left
        sketchBMZ[:, k] /= triangleBRM[:, k, k, None]
        pivotB1Z, rest = sketchBMZ[:, k : k + 1], sketchBMZ[:, k + 1 :]
        triangleBRM[:, k, k + 1 :] = torch.bmm(pivotB1Z, rest.mT)[:, 0]
        rest.baddbmm_(triangleBRM[:, k, k + 1 :, None], pivotB1Z, alpha=-1.0)
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
    """Copy what the indices choose, a share of the memory at a time; see `executor.Executor`."""
    a, b = a.mT if transpose_a else a, b.mT if transpose_b else b
    if left is None and right is None:
        return torch.bmm(a, b)
    out = a.new_empty(len(a if left is None else left), a.shape[1], b.shape[2])
    for batch in batches(len(out), a[:1].nbytes + b[:1].nbytes, a.device):
        torch.bmm(_chosen(a, left, batch), _chosen(b, right, batch), out=out[batch])
    return out


def _chosen(matrices: Tensor, index: Tensor | None, batch: slice) -> Tensor:
    return matrices[batch] if index is None else matrices[index[batch]]


def subtract_product(c: Tensor, a: Tensor, b: Tensor, *, transpose_a: bool = False, transpose_b: bool = False) -> None:
    """See `executor.Executor`."""
    c.baddbmm_(a.mT if transpose_a else a, b.mT if transpose_b else b, alpha=-1.0)


def take(blocksBMM: Tensor, rowsBI: Tensor, columnsBJ: Tensor) -> Tensor:
    """See `executor.Executor`."""
    every = torch.arange(len(rowsBI), device=rowsBI.device)[:, None, None]
    return blocksBMM[every, rowsBI[:, :, None], columnsBJ[:, None, :]]


def put_blocks(out: Tensor, at: tuple[Numbers, Numbers, Numbers], blocksPRR: Tensor) -> None:
    """See `executor.Executor`."""
    numbers, rows, columns = (torch.from_numpy(index).to(out.device) for index in at)
    out[numbers, rows, :, columns] = blocksPRR


def factorize(aBCC: Tensor, method: Method) -> Factors:
    """See `executor.Executor`."""
    if method == "lu":
        triangles, pivots, info = torch.linalg.lu_factor_ex(aBCC)
    else:
        (triangles, info), pivots = torch.linalg.cholesky_ex(aBCC), None
    not_finite = ~triangles.diagonal(dim1=1, dim2=2).isfinite()  # LAPACK and cuSOLVER go on with a NaN
    first = not_finite.cumsum(dim=1).eq(0).sum(dim=1, dtype=info.dtype) + 1
    return Factors(triangles, pivots, torch.where((info == 0) & not_finite.any(dim=1), first, info))


def solve(factors: Factors, bBCK: Tensor) -> Tensor:
    """See `executor.Executor`; `torch.cholesky_solve` goes from box to box on a GPU if K > 1."""
    if factors.pivots is not None:
        return torch.linalg.lu_solve(factors.triangles, factors.pivots, bBCK)
    half = torch.linalg.solve_triangular(factors.triangles, bBCK, upper=False)
    return torch.linalg.solve_triangular(factors.triangles.mT, half, upper=True)


def multiply_pairs(
    blocksPMM: Tensor, pairs: Tensor, xBMK: Tensor, yBMK: Tensor, lower: Tensor, upper: Tensor, own: int
) -> None:
    """See `executor.Executor`."""
    for batch in batches(len(pairs) - own, xBMK[0].nbytes, xBMK.device):
        blocks, (i, j) = blocksPMM[own:][batch], pairs[own:][batch].T
        _add_products(lower, i, i < len(lower), blocks @ xBMK[j])
        _add_products(upper, j, (j < len(upper)) & (i != j), blocks.mT @ yBMK[i])


def _add_products(sums: Tensor, box: Tensor, counts: Tensor, products: Tensor) -> None:
    products *= counts[:, None, None]  # cheaper than a choice of blocks
    sums.index_add_(0, box.clamp(max=len(sums) - 1), products)


def lifts(interpolationBCR: Tensor, liftBCR: Tensor, orderBM: Tensor) -> Tensor:
    """See `executor.Executor`."""
    skeleton = interpolationBCR.mT @ liftBCR
    skeleton.diagonal(dim1=1, dim2=2).add_(1.0)
    rows = torch.cat([skeleton, -liftBCR], dim=1)
    return torch.empty_like(rows).scatter_(1, orderBM[:, :, None].expand_as(rows), rows)


def project(blocksPMM: Tensor, pairs: Tensor, basesBMR: Tensor) -> Tensor:
    """See `executor.Executor`."""
    rank = basesBMR.shape[2]
    out = blocksPMM.new_empty(len(blocksPMM), rank, rank)
    for batch in batches(len(out), 4 * blocksPMM[:1].nbytes, blocksPMM.device):
        i, j = pairs[batch].T
        torch.bmm(basesBMR[i].mT, blocksPMM[batch] @ basesBMR[j], out=out[batch])
    return out

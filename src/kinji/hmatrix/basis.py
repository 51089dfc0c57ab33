"""Shared nested bases of an H2 matrix, with pre-computed fill-ins.

Each box has one basis for its whole block row. It spans the far field and, for the ULV factorization, also
the fill-ins that the elimination of its neighbours will cause: Ma, Deshmukh, Yokota, "Scalable linear time
dense direct solver for 3-D problems without trailing sub-matrix dependencies", SC22 (arXiv:2208.10907). The
fill-in rows are the ones of the later variant (arXiv:2502.02395), ``K_jj^-1 K_ji`` for every neighbour j;
both sets of rows enter through one random sketch.

Dimension letters: B boxes of a level, P near pairs, M places of a box, R rank, S far samples, Z sketch
columns.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from numpy.linalg import LinAlgError
from torch import Tensor

from kinji.hmatrix.admissibility import Pairs
from kinji.hmatrix.cluster_tree import ClusterTree
from kinji.hmatrix.kernels import Kernel, batches

OVERSAMPLING = 16
"""Sketch columns beyond the rank; Halko, Martinsson, Tropp, SIAM Review 53 (2011), sec. 4.2, ask for 5 to 10."""


@dataclass(frozen=True)
class BasisLevel:
    """Basis of one level by row interpolation.

    Attributes
    ----------
    places : Tensor
        Points a box works on (its own at the leaves, its children's skeletons above), shape ``(B, M)``.
    skeleton : Tensor
        The ``R`` of them that represent the others, shape ``(B, R)``.
    interpolation : Tensor
        Rows of the block row from the skeleton's rows, shape ``(B, M, R)``; a skeleton row is a row of the
        identity.
    """

    places: Tensor
    skeleton: Tensor
    interpolation: Tensor

    @property
    def rank(self) -> int:
        """Rank of the level, R."""
        return self.skeleton.shape[1]


def near_blocks(kernel: Kernel, tree: ClusterTree, places: Tensor, near: Pairs) -> Tensor:
    """Evaluate the near blocks of one level.

    Parameters
    ----------
    kernel : Kernel
        Entry evaluator.
    tree : ClusterTree
        The points.
    places : Tensor
        Rows of ``tree.points`` per box, shape ``(B, M)``.
    near : ndarray
        Near pairs, shape ``(P, 2)``.

    Returns
    -------
    Tensor
        Blocks, shape ``(P, M, M)``.
    """
    xBM3 = tree.points[places]
    pairs = torch.from_numpy(near).to(places.device)
    size = places.shape[1]
    blocks = xBM3.new_empty(len(near), size, size)
    for batch in batches(len(near), 8 * size * size, places.device):
        i, j = pairs[batch].T
        blocks[batch] = kernel(xBM3[i], xBM3[j])
    blocks[: len(places)].diagonal(dim1=1, dim2=2).fill_(kernel.diagonal)
    return blocks


def build_level(
    kernel: Kernel,
    tree: ClusterTree,
    places: Tensor,
    near: Pairs,
    far_sample: Tensor,
    *,
    level: int,
    rank: int,
    tolerance: float,
    fill_in_blocks: Tensor | None,
    generator: torch.Generator,
) -> BasisLevel:
    """Choose the skeletons of one level.

    Parameters
    ----------
    kernel, tree, places, near
        As in `near_blocks`.
    far_sample : Tensor
        Points that stand for the far field of each box, shape ``(B, S)``.
    level : int
        Number of the level, for messages.
    rank : int
        Largest rank.
    tolerance : float
        Singular values of a box's sketch below ``tolerance`` times its largest are dropped; the box that
        needs most sets the rank of the level.
    fill_in_blocks : Tensor or None
        Near blocks of the level, shape ``(P, M, M)``, to span the fill-ins too; None spans the far field
        only.
    generator : torch.Generator
        Source of the sketching matrices.

    Returns
    -------
    BasisLevel
        The basis.

    Raises
    ------
    numpy.linalg.LinAlgError
        If a diagonal block is not positive definite.
    """
    boxes, size = places.shape
    columns = min(rank, size) + OVERSAMPLING
    sketch = _sketch_far_field(kernel, tree.points, places, far_sample, columns, generator)
    if fill_in_blocks is not None:
        sketch += _sketch_fill_ins(fill_in_blocks, near, boxes, columns, level, generator)
    left, singular_values, _ = torch.linalg.svd(sketch, full_matrices=False)
    needed = (singular_values > tolerance * singular_values[:, :1]).sum(dim=1).max()
    kept = max(1, min(int(needed), rank, size))
    return _interpolate(places, left[:, :, :kept])


def _sketch_far_field(
    kernel: Kernel, points: Tensor, places: Tensor, farBS: Tensor, columns: int, generator: torch.Generator
) -> Tensor:
    boxes, size = places.shape
    randomSZ = _gaussian_matrix((farBS.shape[1], columns), generator, points)
    sketch = points.new_empty(boxes, size, columns)
    for batch in batches(boxes, 8 * size * farBS.shape[1], places.device):
        sketch[batch] = kernel(points[places[batch]], points[farBS[batch]]) @ randomSZ
    return sketch


def _sketch_fill_ins(
    blocks: Tensor, near: Pairs, boxes: int, columns: int, level: int, generator: torch.Generator
) -> Tensor:
    factors, info = torch.linalg.cholesky_ex(blocks[:boxes])
    check_positive_definite(info, f"level {level}")
    random = _gaussian_matrix((boxes, blocks.shape[1], columns), generator, blocks)
    weighted = torch.cholesky_solve(random, factors)
    sketch = torch.zeros_like(random)
    coupled, couplings = torch.from_numpy(near[boxes:]).to(blocks.device), blocks[boxes:]
    for batch in batches(len(coupled), blocks[0].nbytes, blocks.device):
        i, j = coupled[batch].T
        sketch.index_add_(0, i, couplings[batch] @ weighted[j])
        sketch.index_add_(0, j, couplings[batch].mT @ weighted[i])
    return sketch


def check_positive_definite(info: Tensor, where: str) -> None:
    """Turn the status of a batched Cholesky factorization into an error.

    Parameters
    ----------
    info : Tensor
        Order of the first leading minor that is not positive, per box; 0 where there is none.
    where : str
        Which boxes these are, for the message.

    Raises
    ------
    numpy.linalg.LinAlgError
        If any box failed; it names the box and the remedy.
    """
    failed = info.nonzero().flatten()
    if failed.numel():
        box = int(failed[0])
        raise LinAlgError(
            f"{where}, box {box}: the diagonal block is not positive definite (pivot {int(info[box])}, "
            f"{failed.numel()} boxes in all): raise the diagonal of the kernel, the rank or the leaf size"
        )


def _gaussian_matrix(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=like.dtype).to(like.device)


def _interpolate(places: Tensor, basis: Tensor) -> BasisLevel:
    with _one_thread():
        permutation, lower, _ = torch.linalg.lu(basis)
    rank = basis.shape[2]
    order = permutation.argmax(dim=1)
    rows = torch.linalg.solve_triangular(lower[:, :rank], lower, upper=False, left=False, unitriangular=True)
    interpolation = torch.empty_like(rows)
    interpolation.scatter_(1, order[:, :, None].expand_as(rows), rows)
    return BasisLevel(places, places.gather(1, order[:, :rank]), interpolation)


@contextmanager
def _one_thread() -> Iterator[None]:
    # On several CPU threads the batched LU of torch 2.15.0 returns invalid pivots for tall matrices.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

"""Shared nested bases of an H2 matrix, with pre-computed fill-ins.

Each box has one basis for its whole block row. It spans the far field and, for the ULV factorization, also the
fill-ins that the elimination of its neighbours will cause; all rows enter through one random sketch.

- "2023": ``K_jj^-1 K_ji`` for every neighbour j (arXiv:2502.02395), which is what the elimination multiplies with;
- "sc22": ``G = sum K_ij K_ji`` over the neighbours, scaled to the norm of the far field: Ma, Deshmukh, Yokota,
  "Scalable linear time dense direct solver for 3-D problems without trailing sub-matrix dependencies"
  (arXiv:2208.10907);
- "none": the far field only, which the same rank represents better: for an operator that is only multiplied with.

Dimension letters: B boxes of a level, P near pairs, M places of a box, R rank, C = M - R complement, S far samples, Z
sketch columns.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from numpy.linalg import LinAlgError
from torch import Tensor

from kinji.hmatrix.cluster_tree import ClusterTree
from kinji.hmatrix.executor import Executor
from kinji.hmatrix.kernels import Kernel

FillIns = Literal["none", "sc22", "2023"]

OVERSAMPLING = 16
"""Sketch columns beyond the rank; Halko, Martinsson, Tropp, SIAM Review 53 (2011), sec. 4.2, ask for 5 to 10."""


@dataclass(frozen=True)
class BasisLevel:
    """Basis of one level by row interpolation: in the order of the box, the rows from R on are T times the first R.

    Attributes
    ----------
    places : Tensor
        Points a box works on (its own at the leaves, its children's skeletons above), shape ``(B, M)``.
    order : Tensor
        Places in the order skeleton, complement, shape ``(B, M)``.
    interpolation : Tensor
        ``T``, shape ``(B, C, R)``.
    """

    places: Tensor
    order: Tensor
    interpolation: Tensor

    @property
    def rank(self) -> int:
        """Rank of the level, R."""
        return self.interpolation.shape[2]

    @property
    def skeleton(self) -> Tensor:
        """The points that represent the others, shape ``(B, R)``."""
        return self.places.gather(1, self.order[:, : self.rank])

    def ordered(self, xBMK: Tensor) -> tuple[Tensor, Tensor]:
        """Split rows into those of the skeleton ``(B, R, K)`` and of the complement ``(B, C, K)``."""
        rows = xBMK.flatten(0, 1).index_select(0, self._rows.flatten()).view_as(xBMK)
        return rows[:, : self.rank], rows[:, self.rank :]

    def placed(self, skeletonBRK: Tensor, complementBCK: Tensor) -> Tensor:
        """Bring rows back to the order of the places, ``(B, M, K)``: the inverse of `ordered`."""
        boxes, size = self.order.shape
        rows = skeletonBRK.new_empty(boxes * size, skeletonBRK.shape[2])
        for part, numbers in ((skeletonBRK, self._rows[:, : self.rank]), (complementBCK, self._rows[:, self.rank :])):
            rows.index_copy_(0, numbers.flatten(), part.flatten(0, 1))
        return rows.view(boxes, size, -1)

    @property
    def _rows(self) -> Tensor:
        """Places in order, numbered over all boxes, shape ``(B, M)``."""
        boxes, size = self.order.shape
        return self.order + size * torch.arange(boxes, device=self.order.device)[:, None]


def near_blocks(on: Executor, kernel: Kernel, tree: ClusterTree, places: Tensor, near: Tensor, like: Tensor) -> Tensor:
    """Evaluate the near blocks of one level.

    Parameters
    ----------
    on : Executor
        Batched routines.
    kernel : Kernel
        Entry evaluator.
    tree : ClusterTree
        The points.
    places : Tensor
        Rows of ``tree.points`` per box that stands in a pair, shape ``(B, M)``.
    near : Tensor
        Near pairs, those of a box with itself first, shape ``(P, 2)``.
    like : Tensor
        Gives the precision.

    Returns
    -------
    Tensor
        Blocks, shape ``(P, M, M)``.
    """
    boxes, size = int((near[:, 0] == near[:, 1]).sum()), places.shape[1]
    blocks = like.new_empty(len(near), size, size)
    on.kernel_blocks(kernel, tree.points, places[near[:, 0]], places[near[:, 1]], blocks)
    blocks[:boxes].diagonal(dim1=1, dim2=2).fill_(kernel.diagonal)
    return blocks


def sketch_fill_ins(
    on: Executor, blocks: Tensor, near: Tensor, farBMZ: Tensor, variant: FillIns, random: Tensor
) -> None:
    """Add a sketch of the fill-ins to that of the far field, in place.

    Parameters
    ----------
    on : Executor
        Batched routines.
    blocks : Tensor
        Near blocks of the level, shape ``(P, M, M)``.
    near : Tensor
        Near pairs, those of a box with itself first, shape ``(P, 2)``.
    farBMZ : Tensor
        Sketch of the far field, shape ``(B, M, Z)``.
    variant : {"none", "sc22", "2023"}
        Which rows.
    random : Tensor
        Normally distributed numbers of every box, shape ``(B, M, Z)``.

    Raises
    ------
    numpy.linalg.LinAlgError
        If a diagonal block is not positive definite ("2023").
    """
    boxes = len(farBMZ)
    if variant == "2023":
        factors = on.factorize(blocks[:boxes].clone(), "cholesky")
        check_factors(factors.info, "fill-ins of a level")
        inverted = on.solve(factors, random)
        on.multiply_pairs(blocks, near, inverted, inverted, farBMZ, farBMZ, boxes)
    elif variant == "sc22":
        gram = _sketch_gram(on, blocks, near, random)
        length, gram_length = (x.square().sum(dim=(1, 2), keepdim=True).sqrt() for x in (farBMZ, gram))
        both = (length > 0) & (gram_length > 0)  # a box without a far field has fill-ins all the same
        farBMZ += gram * torch.where(both, length / gram_length, 1.0)


def _sketch_gram(on: Executor, blocks: Tensor, near: Tensor, random: Tensor) -> Tensor:
    """Return ``sum_j A_ij A_ji random_i`` over the neighbours j of each box."""
    boxes, gram = len(random), torch.zeros_like(random)
    for side, box in enumerate(near[boxes:].T):
        pairs = (box < boxes).nonzero().flatten()  # the others are of boxes that are not here
        inner = on.multiply(blocks, random, left=boxes + pairs, right=box[pairs], transpose_a=side == 0)
        gram.index_add_(0, box[pairs], on.multiply(blocks, inner, left=boxes + pairs, transpose_a=side == 1))
    return gram


def check_factors(info: Tensor, where: str) -> None:
    """Turn the status of a batched factorization into an error.

    Parameters
    ----------
    info : Tensor
        First pivot that failed, from 1, per box; 0 where there is none.
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

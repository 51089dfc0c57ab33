"""H2 matrix of a kernel: dense near blocks at the leaves, far blocks in shared nested bases at every level.

Dimension letters: B boxes of a level, P pairs, M places of a box, R rank, C = M - R complement, N points, K right-hand
sides.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from kinji.hmatrix.admissibility import LevelPairs, find_pairs, sample_far_fields
from kinji.hmatrix.basis import OVERSAMPLING, BasisLevel, FillIns, near_blocks, sketch_fill_ins
from kinji.hmatrix.cluster_tree import ClusterTree, build_tree
from kinji.hmatrix.distributed import Ranks, Shares, share_out
from kinji.hmatrix.executor import Executor, cores_for_loops, executor
from kinji.hmatrix.kernels import Kernel
from kinji.hmatrix.memory import check_memory


@dataclass(frozen=True)
class NearField:
    """Tree, block structure and dense leaf blocks: what every compression of one matrix shares.

    Attributes
    ----------
    kernel : Kernel
        Entry evaluator.
    tree : ClusterTree
        The boxes.
    pairs : list of LevelPairs
        Block structure, root first.
    blocks : Tensor
        Near blocks of the leaf level, in the order of ``pairs[-1].near``, shape ``(P, M, M)``; float64 or float32,
        which is the precision of all that is computed from them.
    on : Executor
        Batched routines.
    shares : Shares
        The boxes that are here, of which all arrays are: on one rank all.
    """

    kernel: Kernel
    tree: ClusterTree
    pairs: list[LevelPairs]
    blocks: Tensor
    on: Executor
    shares: Shares

    def near(self, level: int) -> Tensor:
        """Near pairs of a level, those of a box with itself first, shape ``(P, 2)``."""
        return self.shares.levels[level].near.local

    def far(self, level: int) -> Tensor:
        """Far pairs of a level, shape ``(P, 2)``."""
        return self.shares.levels[level].far.local


@dataclass(frozen=True)
class H2Matrix:
    """Kernel matrix with O(N) stored numbers.

    Attributes
    ----------
    field : NearField
        Tree, block structure and dense leaf blocks.
    levels : dict of int to BasisLevel
        Bases of the levels that have a far field, or a coarser level that has one; leaves first.
    couplings : dict of int to Tensor
        Per such level: kernel between the skeletons of the far pairs, shape ``(P, R, R)``.
    """

    field: NearField
    levels: dict[int, BasisLevel]
    couplings: dict[int, Tensor]

    @cores_for_loops()
    def matvec(self, xNK: Tensor) -> Tensor:
        """Multiply with vectors ``(N, K)`` in O(N): up the tree, across the far pairs, down the tree."""
        field, own, leaves = self.field, self.field.shares.own, self.field.shares.levels[-1].near
        leaf_x = own.scatter(xNK.to(field.blocks.dtype))
        upward = self._ascend(leaf_x)
        product = self._descend(upward) if self.levels else torch.zeros_like(leaf_x)
        on = leaves.routines(field.on)
        on.multiply_pairs(field.blocks, leaves.local, leaf_x, leaf_x, product, product, 0)
        return own.gather(product).to(xNK.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of the near blocks, the interpolations and the couplings."""
        far = (level.interpolation.nbytes for level in self.levels.values())
        return self.field.blocks.nbytes + sum(far) + sum(block.nbytes for block in self.couplings.values())

    def _ascend(self, xBMK: Tensor) -> dict[int, Tensor]:
        upward = {}
        for level, basis in self.levels.items():
            skeleton, complement = basis.ordered(xBMK)
            upward[level] = skeleton + self.field.on.multiply(basis.interpolation, complement, transpose_a=True)
            xBMK = self.field.shares.levels[level].merge(upward[level])
        return upward

    def _descend(self, upward: dict[int, Tensor]) -> Tensor:
        yBMK = None
        for level in sorted(self.levels):
            basis, share = self.levels[level], self.field.shares.levels[level]
            on = share.far.routines(self.field.on)
            x = upward[level]
            skeleton = torch.zeros_like(x) if yBMK is None else share.split(yBMK)
            on.multiply_pairs(self.couplings[level], share.far.local, x, x, skeleton, skeleton, 0)
            yBMK = basis.placed(skeleton, on.multiply(basis.interpolation, skeleton))
        return cast(Tensor, yBMK)


@cores_for_loops()
def build_near_field(
    kernel: Kernel,
    points: Tensor,
    *,
    theta: float = 2.0,
    leaf_size: int = 256,
    dtype: torch.dtype = torch.float64,
    foresee: Callable[[ClusterTree, list[LevelPairs]], None] | None = None,
    comm: Any = None,
) -> NearField:
    """Build the tree and the block structure, and evaluate the dense leaf blocks.

    Parameters
    ----------
    kernel : Kernel
        Entry evaluator.
    points : Tensor
        Distinct finite points, shape ``(N, 3)``, float64.
    theta : float
        Admissibility constant (`admissibility.find_pairs`).
    leaf_size : int
        Least number of points of a leaf.
    dtype : torch.dtype
        float64 or float32: the precision of all that is computed from this; entries are evaluated in float64.
    foresee : callable, optional
        Called with the tree and the pairs before blocks are allocated; default: check that the blocks fit.
    comm : mpi4py communicator, optional
        Ranks to share the boxes out to, a power of two of them, each of which calls this, and all that follows, with
        the same arguments; vectors then have the rows ``shares.rows`` of the rank only (`distributed`).

    Returns
    -------
    NearField
        The part of the matrix that is kept dense.

    Raises
    ------
    TypeError, ValueError
        If the points or a parameter are unusable.
    MemoryError
        If the blocks will not fit.
    """
    if dtype not in (torch.float64, torch.float32):
        raise TypeError(f"dtype = {dtype}: choose torch.float64 or torch.float32")
    tree, on = build_tree(points, leaf_size=leaf_size), executor(points.device)
    pairs = find_pairs(tree, theta=theta)
    shares = share_out(tree, pairs, Ranks(comm))
    leaves, like = shares.levels[-1], torch.empty(0, dtype=dtype, device=points.device)
    near, places = leaves.near.local, leaves.near.extend(tree.members[leaves.own])
    if foresee is None:
        check_memory(len(near) * tree.members.shape[1] ** 2 * dtype.itemsize, points.device, "the near blocks")
    else:
        foresee(tree, pairs)
    return NearField(kernel, tree, pairs, near_blocks(on, kernel, tree, places, near, like), on, shares)


@cores_for_loops()
def compress(
    field: NearField,
    *,
    rank: int = 100,
    tolerance: float = 1e-10,
    samples: int = 2000,
    fill_ins: FillIns = "2023",
    seed: int = 0,
) -> H2Matrix:
    """Choose nested bases, leaves first, and evaluate the couplings.

    Parameters
    ----------
    field : NearField
        Tree, block structure and dense leaf blocks.
    rank : int
        Largest rank of any level.
    tolerance : float
        Relative size of the pivots that are dropped.
    samples : int
        Far-field samples per box.
    fill_ins : {"none", "sc22", "2023"}
        What the bases span beside the far field (`basis`).
    seed : int
        Seed of the sketches.

    Returns
    -------
    H2Matrix
        The compressed matrix.

    Raises
    ------
    ValueError
        If the rank or the number of samples is below 1.
    numpy.linalg.LinAlgError
        If a diagonal block is not positive definite while its inverse is asked for.
    """
    if rank < 1 or samples < 1:
        raise ValueError(f"rank = {rank}, samples = {samples}: both must be at least 1")
    if fill_ins not in ("none", "sc22", "2023"):
        raise ValueError(f"unknown fill-ins {fill_ins!r}: choose none, sc22 or 2023")
    generator = torch.Generator().manual_seed(seed)
    levels: dict[int, BasisLevel] = {}
    couplings: dict[int, Tensor] = {}
    shares = field.shares.levels
    places = field.tree.members[shares[-1].own]
    far_samples = sample_far_fields(field.tree, field.pairs, samples=samples, parts=[share.own for share in shares])
    for level in sorted(far_samples, reverse=True):
        columns = min(rank, places.shape[1]) + OVERSAMPLING
        sketch = _sketch_level(field, level, places, far_samples[level], columns, fill_ins, generator)
        on = shares[level].near.routines(field.on)
        order, interpolation = on.interpolate(sketch, columns - OVERSAMPLING, tolerance)
        levels[level] = BasisLevel(places, order, interpolation)
        skeleton, (i, j) = shares[level].far.extend(levels[level].skeleton), field.far(level).T
        couplings[level] = sketch.new_empty(len(i), skeleton.shape[1], skeleton.shape[1])
        field.on.kernel_blocks(field.kernel, field.tree.points, skeleton[i], skeleton[j], couplings[level])
        places = shares[level].merge(levels[level].skeleton)
    return H2Matrix(field, levels, couplings)


def _sketch_level(
    field: NearField,
    level: int,
    places: Tensor,
    far_sample: Tensor,
    columns: int,
    fill_ins: FillIns,
    generator: torch.Generator,
) -> Tensor:
    """Return random combinations of the rows that the bases are to span, shape ``(B, M, Z)``."""
    on, kernel, tree, share, like = field.on, field.kernel, field.tree, field.shares.levels[level], field.blocks
    random = torch.randn((far_sample.shape[1], columns), generator=generator, dtype=like.dtype).to(like.device)
    sketch = on.sketch(kernel, tree.points, places, far_sample, random)
    if fill_ins != "none":
        near, blocks = share.near, like
        if level < tree.depth:
            blocks = near_blocks(on, kernel, tree, near.extend(places), near.local, like)
        random = share.draw(sketch.shape[1:], generator, like.dtype).to(like.device)
        sketch_fill_ins(near.routines(on), blocks, near.local, sketch, fill_ins, random)
    return sketch

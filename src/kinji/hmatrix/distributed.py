"""The boxes of an H2 matrix shared out over the ranks of an MPI communicator.

Points, tree and pair lists are small and on every rank. At a level with at least as many boxes as ranks, each rank owns
consecutive boxes, so that children are where their parent is and merging them needs no other rank. Levels above those,
and the root, are worked on by every rank alike: their vectors and blocks are gathered once, below the first of them.

The arrays of a rank hold its own boxes. Before a product over pairs, copies of the boxes of other ranks that stand in a
pair with them, the halo, are fetched and put after them. A pair of boxes of two ranks is kept by both: its block is
evaluated and lifted twice, but nothing has to be sent back, and every box adds up its products in the order of one
rank, so that compression and factors are those of one rank to the bit.

Every rank makes the same calls; vectors have the rank's rows only::

    field = build_near_field(kernel, points, comm=MPI.COMM_WORLD)
    x = solve(factorize(compress(field)), b[field.shares.rows])

Dimension letters: B boxes, P pairs, M places, K right-hand sides, N points, n points of a rank.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from kinji.hmatrix.admissibility import LevelPairs, Pairs, coarsest_far_level
from kinji.hmatrix.basis import check_factors
from kinji.hmatrix.cluster_tree import ClusterTree
from kinji.hmatrix.executor import Executor, Factors, Method

Number = TypeVar("Number", float, Tensor)
BOXES_AT_ONCE = 16
"""Boxes to draw random numbers for at a time: torch draws 16 numbers at a time, so that the pieces are the whole."""


class Ranks:
    """What travels between ranks, its bytes counted.

    Parameters
    ----------
    comm
        Communicator of mpi4py, of a power of two of ranks; None for one process without MPI.

    Raises
    ------
    ValueError
        If the number of ranks is no power of two.
    """

    def __init__(self, comm: Any = None) -> None:
        self.comm = comm
        self.rank: int = 0 if comm is None else comm.Get_rank()
        self.size: int = 1 if comm is None else comm.Get_size()
        self.sent_bytes: Counter[str] = Counter()
        """Bytes sent to other ranks so far: "halo", "gathered"."""
        if self.size & (self.size - 1):
            raise ValueError(f"{self.size} ranks: the boxes of a level can be shared out to 1, 2, 4, 8, ... ranks only")

    def exchange(self, sent: Tensor, sent_counts: Sequence[int], counts: Sequence[int]) -> Tensor:
        """Send rank k the next ``sent_counts[k]`` rows and return what came, ``counts[k]`` rows from each rank k."""
        self.sent_bytes["halo"] += sent.nbytes
        width, received = math.prod(sent.shape[1:]), torch.empty(sum(counts), *sent.shape[1:], dtype=sent.dtype)
        outgoing, incoming = ([count * width for count in rows] for rows in (sent_counts, counts))
        self.comm.Alltoallv([sent.contiguous().cpu().numpy(), outgoing], [received.numpy(), incoming])
        return received.to(sent.device)

    def gather(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """Return the rows of all ranks, ``counts[k]`` of rank k, in the order of the ranks."""
        self.sent_bytes["gathered"] += rows.nbytes * (self.size - 1)
        width, received = math.prod(rows.shape[1:]), torch.empty(sum(counts), *rows.shape[1:], dtype=rows.dtype)
        self.comm.Allgatherv(rows.contiguous().cpu().numpy(), [received.numpy(), [count * width for count in counts]])
        return received.to(rows.device)

    def largest(self, value: int) -> int:
        """Return the largest value of any rank."""
        return max(self.comm.allgather(value))

    def sum(self, value: Number) -> Number:
        """Return the sum over the ranks, in their order: the same on each."""
        return sum(self.comm.allgather(value))


@dataclass(frozen=True)
class Halo:
    """Copies of the boxes of other ranks that one rank needs at one level.

    Attributes
    ----------
    ranks : Ranks
        The ranks.
    level : int
        The level.
    sent : Tensor
        Own boxes that the others need, rank after rank.
    sent_counts, counts : list of int
        How many go to and come from each rank.
    """

    ranks: Ranks
    level: int
    sent: Tensor
    sent_counts: list[int]
    counts: list[int]

    def extend(self, own: Tensor) -> Tensor:
        """Return the rows of the rank's boxes ``(B, ...)`` and, after them, those of the halo."""
        return torch.cat([own, self.ranks.exchange(own[self.sent], self.sent_counts, self.counts)])


class _SharedExecutor:
    """Routines of one level and pair list that see other ranks; all others are those of the executor beneath.

    A factorization fails on all ranks or on none: a rank that stopped alone would leave the others waiting.
    """

    def __init__(self, on: Executor, halo: Halo) -> None:
        self._on, self._halo = on, halo

    def __getattr__(self, name: str) -> Any:
        return getattr(self._on, name)

    def interpolate(self, sketchBMZ: Tensor, rank: int, tolerance: float) -> tuple[Tensor, Tensor]:
        return self._on.interpolate(sketchBMZ, rank, tolerance, self._halo.ranks.largest)

    def factorize(self, aBCC: Tensor, method: Method) -> Factors:
        factors, ranks = self._on.factorize(aBCC, method), self._halo.ranks
        if ranks.largest(int(factors.info.any())):
            check_factors(ranks.gather(factors.info, [len(aBCC)] * ranks.size), f"level {self._halo.level}")
        return factors

    def multiply_pairs(
        self, blocksPMM: Tensor, pairs: Tensor, xBMK: Tensor, yBMK: Tensor, lower: Tensor, upper: Tensor, own: int
    ) -> None:
        x = self._halo.extend(xBMK)
        y = x if yBMK is xBMK else self._halo.extend(yBMK)
        self._on.multiply_pairs(blocksPMM, pairs, x, y, lower, upper, own)


@dataclass(frozen=True)
class PairShare:
    """The pairs of one level in which a box of one rank stands.

    Attributes
    ----------
    pairs : ndarray
        Numbers of the boxes in the level, in the order of the level, shape ``(P, 2)``.
    local : Tensor
        Their numbers in the arrays of the rank: its own boxes, then the halo.
    halo : Halo or None
        None where the rank has all boxes.
    """

    pairs: Pairs
    local: Tensor
    halo: Halo | None

    def routines(self, on: Executor) -> Executor:
        """Return an executor whose products over these pairs take and return rows of the rank's boxes."""
        return on if self.halo is None else cast(Executor, _SharedExecutor(on, self.halo))

    def extend(self, own: Tensor) -> Tensor:
        """Return rows of the rank's boxes and, after them, of the halo: what ``local`` numbers."""
        return own if self.halo is None else self.halo.extend(own)


@dataclass(frozen=True)
class LevelShare:
    """What one rank works on at one level.

    Attributes
    ----------
    ranks : Ranks
        The ranks.
    every : LevelPairs
        All pairs of the level.
    own : slice
        The rank's boxes.
    boxes : int
        Number of boxes of the level, B.
    near, far : PairShare
        The rank's pairs.
    gathers : bool
        Whether boxes are shared out at this level, but not at that of their parents.
    """

    ranks: Ranks
    every: LevelPairs
    own: slice
    boxes: int
    near: PairShare
    far: PairShare
    gathers: bool

    def gather(self, own: Tensor) -> Tensor:
        """Return rows of the boxes whose parents the rank works on."""
        return self.ranks.gather(own, [len(own)] * self.ranks.size) if self.gathers else own

    def merge(self, xBMK: Tensor) -> Tensor:
        """Return the rows of two sibling boxes as those of their parent."""
        xBMK = self.gather(xBMK)
        return xBMK.reshape(len(xBMK) // 2, 2 * xBMK.shape[1], *xBMK.shape[2:])

    def split(self, xBMK: Tensor) -> Tensor:
        """Return the rows of parents as those of the rank's boxes: the inverse of `merge`."""
        children = xBMK.reshape(2 * len(xBMK), xBMK.shape[1] // 2, *xBMK.shape[2:])
        return children[self.own] if self.gathers else children

    def child_blocks(self, schur: Tensor, lifted: Tensor, couplings: Tensor) -> list[tuple[Tensor, Pairs]]:
        """Return all blocks that the near blocks of the parents are made of, with their pairs.

        They come from those of the rank's boxes with themselves, of its other near pairs and of its far pairs.
        """
        boxes, near, far = len(schur), self.near.pairs, self.far.pairs
        if not self.gathers:
            return [(schur, near[:boxes]), (lifted, near[boxes:]), (couplings, far)]
        blocks, pairs = torch.cat([schur, lifted, couplings]), np.concatenate([near, far])
        each, every = self.boxes // self.ranks.size, np.concatenate([self.every.near, self.every.far])
        owner, mine = every[:, 0] // each, pairs[:, 0] // each == self.ranks.rank
        counts = np.bincount(owner, minlength=self.ranks.size).tolist()
        return [(self.ranks.gather(blocks[torch.from_numpy(mine)], counts), every[np.argsort(owner, kind="stable")])]

    def draw(self, shape: Sequence[int], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """Return normally distributed numbers of the rank's boxes, ``(B, *shape)``: those that one rank would draw."""
        at_once, drawn = min(BOXES_AT_ONCE, self.boxes), []
        for first in range(0, self.boxes, at_once):
            piece = torch.randn((at_once, *shape), generator=generator, dtype=dtype)
            drawn.append(piece[max(0, self.own.start - first) : max(0, self.own.stop - first)].clone())
        return torch.cat(drawn)

    def total(self, value: Number) -> Number:
        """Return a sum over the boxes of the level from that over the rank's."""
        return value if self.own.stop - self.own.start == self.boxes else self.ranks.sum(value)


@dataclass(frozen=True)
class Shares:
    """What one rank works on.

    Attributes
    ----------
    ranks : Ranks
        The ranks.
    levels : list of LevelShare
        Root first.
    tree : ClusterTree
        The whole tree.
    own : ClusterTree
        The rank's leaves and their points.
    rows : Tensor
        Points of the rank, ascending: its rows of a vector, shape ``(n,)``.
    """

    ranks: Ranks
    levels: list[LevelShare]
    tree: ClusterTree
    own: ClusterTree
    rows: Tensor

    def total(self, sumK: Tensor) -> Tensor:
        """Return sums over all rows of vectors from those over the rank's rows, for inner products."""
        return self.levels[-1].total(sumK)

    def collect(self, xnK: Tensor) -> Tensor:
        """Return all rows ``(N, K)`` of a vector of which every rank has its own."""
        if len(self.rows) == self.tree.size:
            return xnK
        leaves = self.tree.members.reshape(self.ranks.size, -1)
        counts = (leaves < self.tree.size).sum(dim=1).tolist()
        rows, values = (self.ranks.gather(x, counts) for x in (self.rows, xnK))
        return torch.empty_like(values).index_copy_(0, rows, values)


def share_out(tree: ClusterTree, pairs: list[LevelPairs], ranks: Ranks) -> Shares:
    """Share the boxes of a matrix out.

    Parameters
    ----------
    tree : ClusterTree
        The boxes.
    pairs : list of LevelPairs
        Block structure, root first.
    ranks : Ranks
        The ranks.

    Returns
    -------
    Shares
        What this rank works on.
    """
    top = max(coarsest_far_level(pairs), ranks.size.bit_length() - 1) if ranks.size > 1 else len(pairs)
    levels = []
    for level, every in enumerate(pairs):
        boxes, each = 1 << level, (1 << level) // ranks.size
        own = slice(ranks.rank * each, (ranks.rank + 1) * each) if level >= top else slice(0, boxes)
        near, far = (_share_pairs(x, own, level, tree.members.device, ranks) for x in (every.near, every.far))
        levels.append(LevelShare(ranks, every, own, boxes, near, far, level == top))
    own_tree, rows = _own_leaves(tree, levels[-1].own)
    return Shares(ranks, levels, tree, own_tree, rows)


def _share_pairs(pairs: Pairs, own: slice, level: int, device: torch.device, ranks: Ranks) -> PairShare:
    each = own.stop - own.start
    if each == 1 << level:
        return PairShare(pairs, torch.from_numpy(pairs).to(device), None)
    mine = (pairs >= own.start) & (pairs < own.stop)
    between = mine[:, 0] != mine[:, 1]
    ours = np.where(mine[:, 0], pairs[:, 0], pairs[:, 1])[between]
    theirs = np.where(mine[:, 0], pairs[:, 1], pairs[:, 0])[between]
    copies, sent = np.unique(theirs), np.unique(np.stack([theirs // each, ours], axis=1), axis=0)
    counts = [np.bincount(owner, minlength=ranks.size).tolist() for owner in (sent[:, 0], copies // each)]
    halo = Halo(ranks, level, torch.from_numpy(sent[:, 1] - own.start).to(device), *counts)
    kept, kept_mine = pairs[mine.any(axis=1)], mine[mine.any(axis=1)]
    local = np.where(kept_mine, kept - own.start, each + np.searchsorted(copies, kept))
    return PairShare(kept, torch.from_numpy(local).to(device), halo)


def _own_leaves(tree: ClusterTree, own: slice) -> tuple[ClusterTree, Tensor]:
    members, ghosts = tree.members[own], tree.points[tree.size :]
    rows = members[members < tree.size].sort().values
    numbers = torch.where(members < tree.size, torch.searchsorted(rows, members), members - tree.size + len(rows))
    return replace(tree, points=torch.cat([tree.points[rows], ghosts]), size=len(rows), members=numbers), rows

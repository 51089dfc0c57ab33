"""Memory that an H2 matrix and its factors will take, foreseen from the block structure alone."""

from __future__ import annotations

import psutil
import torch

from kinji.hmatrix.admissibility import LevelPairs, coarsest_far_level
from kinji.hmatrix.cluster_tree import ClusterTree

DOUBLE, SINGLE = 8, 4
MEBIBYTE = 2**20


def matrix_bytes(tree: ClusterTree, pairs: list[LevelPairs], rank: int, number: int) -> int:
    """Bytes of near blocks, bases and couplings of an H2 matrix whose numbers have ``number`` bytes."""
    size = tree.members.shape[1]
    total = len(pairs[-1].near) * size**2
    for level in range(tree.depth, coarsest_far_level(pairs) - 1, -1):
        kept = min(rank, size)
        total += (1 << level) * size * kept + len(pairs[level].far) * kept**2
        size = 2 * kept
    return total * number


def factor_bytes(tree: ClusterTree, pairs: list[LevelPairs], rank: int, number: int) -> int:
    """Bytes that the factors of an H2-ULV factorization take beside the H2 matrix itself."""
    size, total = tree.members.shape[1], 0
    for level in range(tree.depth, coarsest_far_level(pairs) - 1, -1):
        kept = min(rank, size)
        total += (1 << level) * (size - kept) * size + len(pairs[level - 1].near) * (2 * kept) ** 2
        size = 2 * kept
    return total * number


def solver_bytes(tree: ClusterTree, pairs: list[LevelPairs], *, ranks: tuple[int, int], double: bool) -> int:
    """Bytes of a product in double precision of rank ``ranks[0]`` and of factors of rank ``ranks[1]``."""
    number = DOUBLE if double else SINGLE
    factors = matrix_bytes(tree, pairs, ranks[1], number) + factor_bytes(tree, pairs, ranks[1], number)
    return matrix_bytes(tree, pairs, ranks[0], DOUBLE) + factors


def check_memory(needed: int, device: torch.device, what: str) -> None:
    """Raise MemoryError if ``needed`` bytes are not free on the device, saying how many are."""
    free = _free_on_gpu(device) if device.type == "cuda" else psutil.virtual_memory().available
    if needed > free:
        raise MemoryError(
            f"{what} need {needed / MEBIBYTE:,.0f} MiB and {free / MEBIBYTE:,.0f} MiB are free on {device}: "
            "lower the leaf size, the rank or the number of points"
        )


def _free_on_gpu(device: torch.device) -> int:
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for its next tensors
    return torch.cuda.mem_get_info(device)[0] + kept

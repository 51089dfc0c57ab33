"""Size, depth and width of the task graphs of both factorizations: what decides how far they can scale.

A task is one operation on one tile or one box. With ``p`` workers a graph takes at least ``max(depth, tasks /
p)`` steps.
"""

from dataclasses import dataclass

from kinji.hmatrix.h2_ulv import H2Factor


@dataclass(frozen=True)
class TaskGraph:
    """Number of tasks, length of the longest chain of dependent tasks, and the most tasks that can run at once."""

    tasks: int
    depth: int
    width: int


def tile_cholesky_graph(width: int) -> TaskGraph:
    """Graph of a right-looking tile Cholesky factorization with ``width`` tiles in a row.

    Column k has one factorization, then ``width - k - 1`` panel solves, then updates of the trailing
    triangle, the first of which the next column waits for.
    """
    trailing = [width - k - 1 for k in range(width)]
    tasks = sum(1 + t + t * (t + 1) // 2 for t in trailing)
    return TaskGraph(tasks, 3 * width - 2, max(1, trailing[0] * (trailing[0] + 1) // 2))


def h2_ulv_graph(factor: H2Factor) -> TaskGraph:
    """Graph of an H2-ULV factorization.

    A level has two stages, in each of which all tasks are independent: eliminate the boxes, then carry the near pairs
    of distinct boxes to the next level. The root is one task.
    """
    boxes = [len(level.lift) for level in factor.levels]
    pairs = [len(level.near) - len(level.lift) for level in factor.levels]
    return TaskGraph(sum(boxes) + sum(pairs) + 1, 2 * len(boxes) + 1, max(boxes + pairs, default=1))

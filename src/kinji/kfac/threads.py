"""Work on a CPU shared out whole: a layer to each thread.

LAPACK on several threads is far from as many times faster on factors of a few hundred rows, and its threads and those
of torch, which wait for each other's work by spinning, would take turns on the same cores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch
from threadpoolctl import ThreadpoolController

Item = TypeVar("Item")
Result = TypeVar("Result")


def share_out(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Return the function's results in order, from as many threads as torch has, each with a BLAS of one thread."""
    threads = torch.get_num_threads()
    with _controller().limit(limits=1, user_api="blas"):
        if threads == 1:
            return list(map(function, items))
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(function, items))


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()

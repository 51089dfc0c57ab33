"""Work on a CPU shared out whole: a layer to each thread.

LAPACK on several threads is far from as many times faster on factors of a few hundred rows, and its threads and those
of torch, which wait for each other's work by spinning, would take turns on the same cores.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import torch
from threadpoolctl import ThreadpoolController

Item = TypeVar("Item")
Result = TypeVar("Result")
_inside = threading.local()


def share_out(function: Callable[[Item], Result], items: Iterable[Item], device: torch.device) -> list[Result]:
    """Return the function's results in order; on a CPU from as many threads as torch has, each with one for itself."""
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        return list(map(function, items))
    with one_blas_thread(), ThreadPoolExecutor(threads, initializer=_settle) as pool:
        return list(pool.map(function, items))


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keep the BLAS libraries to one thread for each thread that calls them; nothing to do in those of `share_out`."""
    if vars(_inside).get("settled"):
        yield
        return
    with _controller().limit(limits=1, user_api="blas"):
        yield


def _settle() -> None:
    """Keep torch to this thread of the pool, once it has chosen its own number."""
    torch.get_num_threads()
    _controller().limit(limits=1, user_api="openmp")
    _inside.settled = True


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()

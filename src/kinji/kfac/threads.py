"""Work on a CPU shared out whole: a layer to each thread.

LAPACK on several threads is far from as many times faster on factors of a few hundred rows, and its threads and those
of torch, which wait for each other's work by spinning, would take turns on the same cores.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import torch
from threadpoolctl import ThreadpoolController

Item = TypeVar("Item")
Result = TypeVar("Result")
_inside = threading.local()


def share_out(function: Callable[[Item], Result], items: Iterable[Item], device: torch.device) -> list[Result]:
    """Return the function's results in order; on a CPU from as many threads as torch has, each with one for itself.

    This thread takes its share: what other threads free, the backward pass cannot have again. Threads that have not
    begun when it is through, as those of torch that spin have their cores, are not waited for.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu":
        return list(map(function, items))
    if threads == 1:  # as of a rank beside others: BLAS's threads would wait for cores that those have
        with one_blas_thread():
            return list(map(function, items))
    waiting = enumerate(list(items))

    def work() -> dict[int, Result]:
        with _one_torch_thread(), torch.no_grad():
            return {k: function(item) for k, item in waiting}

    with one_blas_thread():
        others = [_pool(threads - 1).submit(work) for _ in range(threads - 1)]
        try:
            results = work()
        finally:
            begun = [other for other in others if not other.cancel()]
            wait(begun)
    for other in begun:
        results |= other.result()
    return [results[k] for k in sorted(results)]


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keep the BLAS libraries to one thread for each thread that calls them; nothing to do in those of `share_out`."""
    if vars(_inside).get("settled"):
        yield
        return
    with _controller().limit(limits=1, user_api="blas"):
        yield


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    torch.get_num_threads()  # first, as a new thread's torch then chooses its number
    _inside.settled = True
    try:
        with _controller().limit(limits=1, user_api="openmp"):
            yield
    finally:
        _inside.settled = False


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="share_out")


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()

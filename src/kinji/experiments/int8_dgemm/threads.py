"""How many threads multiply."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numba
import threadpoolctl
import torch


@contextmanager
def limited_to(count: int) -> Iterator[None]:
    """Limit torch, numba and BLAS to `count` threads, and give the others back afterwards."""
    before = numba.get_num_threads(), torch.get_num_threads()
    try:
        numba.set_num_threads(count)
        torch.set_num_threads(count)
        with threadpoolctl.threadpool_limits(count):
            yield
    finally:
        numba.set_num_threads(before[0])
        torch.set_num_threads(before[1])

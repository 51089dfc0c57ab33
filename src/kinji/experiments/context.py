"""What a running case has at hand: a device that exists, a number of threads, a way to show progress."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import track

from kinji.errors import KinjiError

T = TypeVar("T")
LOG_INTERVAL_SECONDS = 5.0


@dataclass(frozen=True)
class Progress:
    """Progress on standard error: a bar on a terminal, a plain line every five seconds in a log; or none at all."""

    title: str
    silent: bool = False

    def say(self, message: str) -> None:
        """Print one line."""
        if not self.silent:
            print(f"{self.title}: {message}", file=sys.stderr, flush=True)

    def track(self, items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
        """Yield `items`, showing how many of `total` (their length, if they have one) are done."""
        if total is None and isinstance(items, Sized):
            total = len(items)
        if sys.stderr.isatty() and not self.silent:
            console = Console(stderr=True)
            yield from track(items, f"{self.title}: {what}", total, console=console, transient=True)
        else:
            yield from self._log(items, what, total)

    def _log(self, items: Iterable[T], what: str, total: int | None) -> Iterator[T]:
        start = last = time.monotonic()
        for done, item in enumerate(items):
            if (now := time.monotonic()) - last >= LOG_INTERVAL_SECONDS:
                self.say(f"{what} {done}/{total or '?'}, {now - start:.0f} s")
                last = now
            yield item


@dataclass(frozen=True)
class Context:
    """What a case runs with.

    Attributes
    ----------
    device
        "cpu" or "cuda".
    threads
        What every library is limited to.
    progress
        How to show it; only the first of several ranks does.
    communicator : kinji.kfac.Communicator or None
        To the other ranks, if there are any.
    checkpoints
        Where a long case may leave what it needs to go on; deleted once it has its record.
    out_of_time
        Whether the job nears its time limit: leave a checkpoint and stop.
    """

    device: str
    threads: int
    progress: Progress
    communicator: Any = None
    checkpoints: Path | None = None
    out_of_time: Callable[[], bool] = lambda: False


@contextmanager
def open_context(
    title: str,
    device: str,
    threads: int,
    *,
    communicator: Any = None,
    checkpoints: Path | None = None,
    out_of_time: Callable[[], bool] = lambda: False,
) -> Iterator[Context]:
    """Check that `device` is there and limit torch, numba and BLAS to `threads`; raise `KinjiError` if that fails."""
    import numba
    import threadpoolctl
    import torch

    check_device(device, torch.cuda.is_available)
    try:
        numba.set_num_threads(threads)
    except ValueError as error:
        raise KinjiError(f"--threads {threads}: {error}. Choose at most the cores of this machine.") from error
    torch.set_num_threads(threads)
    progress = Progress(title, silent=communicator is not None and communicator.rank > 0)
    with threadpoolctl.threadpool_limits(threads):
        yield Context(device, threads, progress, communicator, checkpoints, out_of_time)


def check_device(device: str, cuda_is_available: Callable[[], bool]) -> None:
    """Raise `KinjiError` unless `device` is "cpu", or "cuda" on a machine that has one."""
    if device not in ("cpu", "cuda"):
        raise KinjiError(f"unknown device {device!r}: choose cpu or cuda.")
    if device == "cuda" and not cuda_is_available():
        raise KinjiError(
            "--device cuda, but torch sees no CUDA device. Run on a machine with one, or pass --device cpu."
        )

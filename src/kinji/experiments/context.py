"""What a running case has at hand: a device that exists, a number of threads, a way to show progress."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from rich.console import Console
from rich.progress import track

from kinji.errors import KinjiError

T = TypeVar("T")
LOG_INTERVAL_SECONDS = 5.0


@dataclass(frozen=True)
class Progress:
    """Progress on standard error: a bar on a terminal, a plain line every five seconds in a log."""

    title: str

    def say(self, message: str) -> None:
        """Print one line."""
        print(f"{self.title}: {message}", file=sys.stderr, flush=True)

    def track(self, items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
        """Yield `items`, showing how many of `total` (their length, if they have one) are done."""
        if total is None and isinstance(items, Sized):
            total = len(items)
        if sys.stderr.isatty():
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
    """The device ("cpu" or "cuda"), the number of threads every library is limited to, and the progress display."""

    device: str
    threads: int
    progress: Progress


@contextmanager
def open_context(title: str, device: str, threads: int) -> Iterator[Context]:
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
    with threadpoolctl.threadpool_limits(threads):
        yield Context(device, threads, Progress(title))


def check_device(device: str, cuda_is_available: Callable[[], bool]) -> None:
    """Raise `KinjiError` unless `device` is "cpu", or "cuda" on a machine that has one."""
    if device not in ("cpu", "cuda"):
        raise KinjiError(f"unknown device {device!r}: choose cpu or cuda.")
    if device == "cuda" and not cuda_is_available():
        raise KinjiError(
            "--device cuda, but torch sees no CUDA device. Run on a machine with one, or pass --device cpu."
        )

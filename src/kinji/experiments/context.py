"""What a running case has at hand: a device that exists, a number of threads, a way to show progress."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, TextColumn, track
from rich.progress import Progress as Bars

from kinji.errors import KinjiError

T = TypeVar("T")
LOG_INTERVAL_SECONDS = 5.0
LOG_LINES = 50
"""A line follows another after five seconds, or this part of the time so far: a night's training fills no log."""


@dataclass(frozen=True)
class Progress:
    """Progress on standard error: a bar on a terminal, a plain line now and then in a log; or none at all."""

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
        if self._on_terminal():
            console = Console(stderr=True)
            yield from track(items, f"{self.title}: {what}", total, console=console, transient=True)
        else:
            yield from self._log(items, what, total)

    @contextmanager
    def steps(self, what: str) -> Iterator[Callable[[int, int, str], None]]:
        """Hand out what is called after each step: with the steps so far, their number, and what is to be seen."""
        pace = Pace()
        if self._on_terminal():
            with Bars(
                TextColumn("{task.description}"), BarColumn(), console=Console(stderr=True), transient=True
            ) as bars:
                bar = bars.add_task(f"{self.title}: {what}")
                yield lambda done, total, words: bars.update(
                    bar,
                    description=f"{what}, {words}, {pace.left(done, total)}",
                    completed=done,
                    total=total,
                )
        else:
            yield lambda done, total, words: self._log_one(pace, done, total, f"{what}, {words}")

    def _on_terminal(self) -> bool:
        return sys.stderr.isatty() and not self.silent

    def _log(self, items: Iterable[T], what: str, total: int | None) -> Iterator[T]:
        pace = Pace()
        for done, item in enumerate(items):
            self._log_one(pace, done, total, f"{what} {done}/{total or '?'}")
            yield item

    def _log_one(self, pace: Pace, done: int, total: int | None, message: str) -> None:
        left = pace.left(done, total)
        if pace.is_due():
            self.say(f"{message}, {left}")


@dataclass
class Pace:
    """How fast work goes on since the object was made: what an earlier start of a run has done does not count."""

    start: float = field(default_factory=lambda: time.monotonic())
    said: float = 0.0
    before: int | None = None

    @property
    def seconds(self) -> float:
        """Time so far."""
        return time.monotonic() - self.start

    def is_due(self) -> bool:
        """Whether it is time for another line."""
        due = self.seconds - self.said >= max(LOG_INTERVAL_SECONDS, self.said / LOG_LINES)
        if due:
            self.said = self.seconds
        return due

    def left(self, done: int, total: int | None) -> str:
        """Say how long the rest takes if it goes on as before, or, where that is unknown, how long it took so far."""
        self.before = max(0, done - 1) if self.before is None else self.before
        if total is None or done == self.before:
            return f"{timedelta(seconds=round(self.seconds))} so far"
        left = self.seconds / (done - self.before) * (total - done)
        return f"{timedelta(seconds=round(left))} left"


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

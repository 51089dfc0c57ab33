"""Time split into named stages that may interrupt each other, also inside autograd's backward pass.

A stage ends where the next one starts, and the device's own clock is read there: on a GPU by an event in its queue of
kernels, which neither the host nor the kernels wait for. The events are compared after the step.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Protocol

import torch
from torch import Tensor, nn

PASSES = ("forward", "backward")


class Clock(Protocol):
    """Marks points in time; what lies between two of them is asked for once the step is over."""

    def mark(self) -> Any:
        """Mark now."""
        ...

    def seconds(self, start: Any, end: Any) -> float:
        """Return the seconds between two marks."""
        ...


class HostClock:
    """The processor's clock."""

    def mark(self) -> float:
        """Mark now."""
        return time.perf_counter()

    def seconds(self, start: float, end: float) -> float:
        """Return the seconds between two marks."""
        return end - start


class EventClock:
    """Events on the current stream of a GPU; a mark is reached when the kernels before it have run."""

    def mark(self) -> torch.cuda.Event:
        """Mark the end of what has been launched."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """Return the seconds between two marks, once the second is reached."""
        end.synchronize()
        return start.elapsed_time(end) / 1000


def clock_of(device: str) -> Clock:
    """Return the clock of "cpu" or "cuda"."""
    return EventClock() if device == "cuda" else HostClock()


class Stopwatch:
    """Seconds of each stage; while an inner stage runs, the outer one stands still.

    Parameters
    ----------
    clock
        What is read where a stage starts or ends.

    Attributes
    ----------
    running
        A stopwatch that is not running costs nothing and counts nothing.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.running = False
        self._pieces: list[tuple[str, Any, Any]] = []
        self._open: list[str] = []
        self._since: Any = None

    def reset(self, running: bool) -> None:
        """Forget what was counted."""
        self.running = running
        self._pieces.clear()
        self._open.clear()

    def read(self) -> dict[str, float]:
        """Return the seconds of each stage since the last `reset`."""
        seconds: defaultdict[str, float] = defaultdict(float)
        for stage, start, end in self._pieces:
            seconds[stage] += self.clock.seconds(start, end)
        return dict(seconds)

    def start(self, stage: str) -> None:
        """Interrupt the current stage by another."""
        if self.running:
            self._charge()
            self._open.append(stage)

    def stop(self) -> None:
        """End the current stage and go on with the one it interrupted."""
        if self.running:
            self._charge()
            self._open.pop()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the body of a ``with`` statement."""
        self.start(name)
        yield
        self.stop()

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function of which every call is counted."""

        @wraps(function)
        def counted(*arguments: Any, **options: Any) -> Any:
            with self.stage(name):
                return function(*arguments, **options)

        return counted

    def watch(self, name: str, modules: Iterable[nn.Module]) -> None:
        """Count what modules do in the forward and backward pass; in another stage it stays part of that."""
        for module in modules:
            module.register_forward_pre_hook(lambda *_: self._enter(name))
            module.register_forward_hook(lambda _module, _inputs, output: self._watch_backward(name, output))

    def _watch_backward(self, name: str, output: Tensor) -> None:
        self.stop()
        if self.running and output.grad_fn is not None:
            output.grad_fn.register_prehook(lambda *_: self._enter(name))
            output.grad_fn.register_hook(lambda *_: self.stop())

    def _enter(self, name: str) -> None:
        if self.running:
            around = self._open[-1]
            self.start(name if around in PASSES else around)

    def _charge(self) -> None:
        now = self.clock.mark()
        if self._open:
            self._pieces.append((self._open[-1], self._since, now))
        self._since = now

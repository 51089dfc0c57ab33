"""Time split into named parts that may interrupt each other, also inside autograd's backward pass."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Stopwatch:
    """Seconds of each part; while an inner part runs, the outer one stands still.

    Parameters
    ----------
    device
        On "cuda" the queue of kernels is drained before the clock is read.

    Attributes
    ----------
    seconds
        Time of each part since the last `reset`.
    running
        A stopwatch that is not running costs nothing and counts nothing.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.running = False
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = 0.0

    def reset(self, running: bool) -> None:
        """Forget what was counted."""
        self.running = running
        self.seconds.clear()

    def now(self) -> float:
        """Read the clock when the device has finished."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def start(self, part: str) -> None:
        """Interrupt the current part by another."""
        if self.running:
            self._charge()
            self._open.append(part)

    def stop(self) -> None:
        """End the current part and go on with the one it interrupted."""
        if self.running:
            self._charge()
            self._open.pop()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the body of a ``with`` statement."""
        self.start(name)
        yield
        self.stop()

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function of which every call is counted."""

        def counted(*arguments: Any) -> Any:
            with self.part(name):
                return function(*arguments)

        return counted

    def watch(self, name: str, modules: Iterable[nn.Module]) -> None:
        """Count the forward and backward passes of modules."""
        for module in modules:
            module.register_forward_pre_hook(lambda *_: self.start(name))
            module.register_forward_hook(lambda _module, _inputs, output: self._watch_backward(name, output))

    def _watch_backward(self, name: str, output: Tensor) -> None:
        self.stop()
        if self.running and output.grad_fn is not None:
            output.grad_fn.register_prehook(lambda *_: self.start(name))
            output.grad_fn.register_hook(lambda *_: self.stop())

    def _charge(self) -> None:
        now = self.now()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

"""Stage 1 beside the backward pass: on a CUDA device statistics are formed on a stream of their own."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class SideStream:
    """A stream beside the one that is current; none on a CPU, where everything goes on as written.

    Memory that was made on the side stream may be used by the current one after `join`: whatever takes it over on the
    side stream waits for the current one first.

    Parameters
    ----------
    device
        Where the work is.
    wanted
        False to stay on the current stream; it may change between steps, when the device has finished.
    """

    def __init__(self, device: torch.device, *, wanted: bool = True) -> None:
        self.wanted = wanted
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._in_use: deque[tuple[torch.cuda.Event, tuple[object, ...]]] = deque()

    @contextmanager
    def beside(self, *used: object) -> Iterator[None]:
        """Put what follows on the side stream, after what the current one has been given so far.

        What holds tensors of the current stream is kept until they have been used. To record the side stream with their
        memory would not do, as autograd adds into a gradient in place that nobody else holds.
        """
        if self._stream is None or not self.wanted:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            self._in_use.append((self._stream.record_event(), used))
        while self._in_use and self._in_use[0][0].query():
            self._in_use.popleft()

    def join(self) -> None:
        """Let the current stream wait for the side stream."""
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
            self._in_use.clear()

"""Checkpoints in a folder: atomic, self-checking, the last two kept.

A checkpoint is a set of files named by the iteration: one common to all ranks, and one of each rank. A file is written
under another name, flushed to the disk and renamed, so that whatever kills the writer leaves no half of one; it begins
with the SHA-256 of the rest, so that a file damaged later is noticed, and the checkpoint before it is taken.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)

COMMON = "common"
KEPT = 2
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
DIGEST_BYTES = hashlib.sha256().digest_size


class CheckpointError(ValueError):
    """A checkpoint of another run is in the way."""


class Interrupted(Exception):
    """A run was told to stop; it has left a checkpoint, from which the same call goes on."""


@contextmanager
def caught_signals() -> Iterator[list[int]]:
    """Inside the block signals that ask to stop are only noted, in the list; in the main thread, which gets them."""
    caught: list[int] = []
    mine = SIGNALS if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, lambda number, _frame: caught.append(number)) for number in mine}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """Where a run leaves its checkpoints, and when.

    Attributes
    ----------
    folder : pathlib.Path
        Of this run alone; made when the first checkpoint is written.
    identity : mapping
        What makes the run what it is, as numbers and strings: hyperparameters, version of the code. A checkpoint of a
        run with another identity is refused.
    every_seconds : float
        Time between two checkpoints; there is one after the last step in any case.
    interrupted : callable
        Asked after every step whether to leave a checkpoint and raise `Interrupted`. The signals TERM and USR1 say so
        too, to any rank, as long as the run goes on in the main thread.
    """

    folder: Path
    identity: Mapping[str, Any] = field(default_factory=dict)
    every_seconds: float = 600.0
    interrupted: Callable[[], bool] = lambda: False

    def write(self, iteration: int, part: str, state: Mapping[str, Any]) -> None:
        """Write one file of a checkpoint and delete those that are now too old; a full disk is only logged."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _replace(self._file(iteration, part), _sealed(state))
        except OSError as error:
            logger.warning("no checkpoint in %s: %s; training goes on without", self.folder, error.strerror)
            return
        for old in self._iterations(part)[KEPT:]:
            self._file(old, part).unlink()

    def whole(self, part: str) -> list[int]:
        """Return the iterations of which a part is there undamaged, newest first; the log names damaged files."""
        iterations = self._iterations(part)
        found = [iteration for iteration in iterations if _is_whole(self._file(iteration, part))]
        for damaged in sorted(set(iterations) - set(found)):
            file = self._file(damaged, part)
            logger.warning("%s is truncated or damaged: it is left out, and the one before it taken", file)
        return found

    def read(self, iteration: int, part: str) -> dict[str, Any]:
        """Return what was written."""
        content = self._file(iteration, part).read_bytes()[DIGEST_BYTES:]
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)

    def discard(self, part: str, after: int) -> None:
        """Delete the files of a part that are newer than an iteration."""
        for iteration in self._iterations(part):
            if iteration > after:
                self._file(iteration, part).unlink()

    def refuse_another(self, identity: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
        """Raise `CheckpointError` if a saved identity is not that of this run."""
        names = [name for name in {**identity, **saved} if identity.get(name) != saved.get(name)]
        if names:
            differences = ", ".join(f"{name} was {saved.get(name)}, is {identity.get(name)}" for name in names)
            raise CheckpointError(
                f"the checkpoint in {self.folder} is of another run: {differences}. "
                "Delete the folder to start over, or go on with what the checkpoint was made with."
            )

    def _file(self, iteration: int, part: str) -> Path:
        return self.folder / f"{iteration:09d}.{part}"

    def _iterations(self, part: str) -> list[int]:
        return sorted((int(file.stem) for file in self.folder.glob(f"*.{part}") if file.stem.isdecimal()), reverse=True)


def _sealed(state: Mapping[str, Any]) -> list[memoryview | bytes]:
    """Return the bytes of a state behind their digest."""
    stream = io.BytesIO()
    torch.save(dict(state), stream)
    content = stream.getbuffer()
    return [hashlib.sha256(content).digest(), content]


def _replace(file: Path, pieces: list[memoryview | bytes]) -> None:
    temporary = file.with_name(f"writing{file.suffix}")
    try:
        with temporary.open("wb") as stream:
            stream.writelines(pieces)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
        _flush_folder(file.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _flush_folder(folder: Path) -> None:
    """Make a new name last."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_whole(file: Path) -> bool:
    with file.open("rb") as stream:
        digest = stream.read(DIGEST_BYTES)
        return digest == hashlib.file_digest(stream, "sha256").digest()

"""All that a run goes on from, taken to pieces for a checkpoint and put back.

What is equal on all ranks (parameters, progress, the state of a first-order optimizer) is written once; each rank
writes the rest: running statistics, random states, the memory of its augmentation, and K-FAC's state of the layers it
owns. The order of the images needs no state, as it follows from the seed and the iteration.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from kinji.kfac import KFAC
from kinji.training.checkpoint import COMMON, Checkpoints, Interrupted, caught_signals
from kinji.training.ranks import Ranks
from kinji.training.source import Augmentation

logger = logging.getLogger(__name__)

State = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a run shows of itself from time to time.

    Attributes
    ----------
    epoch : float
        Passes over the training part so far.
    iteration : int
        Optimizer steps so far.
    training_loss : float
        Mean over the batches since the last reading, each before the step on it.
    validation_loss : float
        The training objective (label smoothing included) on the validation part.
    validation_accuracy : float
        Share of the validation part that is classified correctly.
    training_seconds : float
        Time so far, readings and checkpoints included, and what the run took before it was interrupted.
    """

    epoch: float
    iteration: int
    training_loss: float
    validation_loss: float
    validation_accuracy: float
    training_seconds: float = field(default=0.0, compare=False)


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a run shows of itself after every step.

    Attributes
    ----------
    iteration, steps : int
        Optimizer steps so far, and of the whole run.
    epoch : float
        Passes over the training part so far.
    epochs : int
        Passes of the whole run.
    loss : float
        Mean over the batch, before the step.
    images : int
        Of the batch, on all ranks.
    """

    iteration: int
    steps: int
    epoch: float
    epochs: int
    loss: float
    images: int


@dataclass
class Progress:
    """How far a run is: its steps, the losses since the last reading, its readings, its seconds until `since`."""

    iteration: int = 0
    losses: list[float] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    earlier_seconds: float = 0.0
    since: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Time so far."""
        return self.earlier_seconds + time.perf_counter() - self.since

    def state_dict(self) -> State:
        """Return numbers, lists and dictionaries."""
        readings = [asdict(reading) for reading in self.readings]
        return {"iteration": self.iteration, "losses": self.losses, "readings": readings, "seconds": self.seconds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there, the clock from now."""
        self.iteration, self.losses = state["iteration"], state["losses"]
        self.readings = [Reading(**reading) for reading in state["readings"]]
        self.earlier_seconds, self.since = state["seconds"], time.perf_counter()


@dataclass
class RunState:
    """Everything in a run that changes from step to step."""

    model: nn.Module
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    augmentation: Augmentation | None
    progress: Progress

    def common(self) -> State:
        """Return what all ranks have alike."""
        buffers = dict(self.model.named_buffers(remove_duplicate=False))
        parameters = {name: tensor for name, tensor in self.model.state_dict().items() if name not in buffers}
        state = {"parameters": parameters, "progress": self.progress.state_dict(), "scaler": self.scaler.state_dict()}
        return state if isinstance(self.optimizer, KFAC) else state | {"optimizer": self.optimizer.state_dict()}

    def own(self) -> State:
        """Return what this rank has of its own."""
        names = dict(self.model.named_buffers(remove_duplicate=False))
        buffers = {name: tensor for name, tensor in self.model.state_dict().items() if name in names}
        state: State = {"buffers": buffers, "random": random_states()}
        if self.augmentation is not None:
            state["augmentation"] = self.augmentation.state_dict()
        return state | {"optimizer": self.optimizer.state_dict()} if isinstance(self.optimizer, KFAC) else state

    def load(self, common: State, own: State) -> None:
        """Put back what `common` and `own` returned."""
        self.model.load_state_dict(common["parameters"] | own["buffers"], strict=True)
        self.optimizer.load_state_dict((common | own)["optimizer"])
        self.scaler.load_state_dict(common["scaler"])
        if self.augmentation is not None:
            self.augmentation.load_state_dict(own["augmentation"])
        self.progress.load_state_dict(common["progress"])
        set_random_states(own["random"])


def random_states() -> State:
    """Return the states of torch's own generators, of the CPU and of the GPU that is in use."""
    states = {"cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_initialized() else {})


def set_random_states(states: State) -> None:
    """Put back what `random_states` returned."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])


class Keeper:
    """Leaves checkpoints of a run on all its ranks, and resumes from the newest that all of them have.

    Parameters
    ----------
    checkpoints
        Where and when; None for a run that keeps none.
    identity
        Of the run, besides what the caller says of it.
    """

    def __init__(self, checkpoints: Checkpoints | None, state: RunState, ranks: Ranks, identity: State) -> None:
        self.checkpoints, self.state, self.ranks = checkpoints, state, ranks
        self.part = f"rank{ranks.rank}of{ranks.size}"
        self.identity = identity | (dict(checkpoints.identity) if checkpoints else {})
        self.written = time.monotonic()
        self.signals: list[int] = []

    def resume(self) -> None:
        """Go on from the newest checkpoint that is whole on all ranks, if there is one."""
        if self.checkpoints is None:
            return
        common = self.checkpoints.whole(COMMON)
        if common:
            saved = self.checkpoints.read(common[0], COMMON)["identity"]
            self.checkpoints.refuse_another(self.identity, saved)
        chosen = self._newest(sorted(set(common) & set(self.checkpoints.whole(self.part)), reverse=True))
        for part in self._parts():
            self.checkpoints.discard(part, after=chosen)
        if chosen:
            self.state.load(self.checkpoints.read(chosen, COMMON), self.checkpoints.read(chosen, self.part))
            logger.info("resumed at iteration %d from %s", chosen, self.checkpoints.folder)
        elif self.checkpoints.folder.is_dir():
            logger.warning("no checkpoint in %s is whole on all ranks: training starts over", self.checkpoints.folder)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Inside the block signals interrupt the run, if it keeps checkpoints."""
        if self.checkpoints is None:
            yield
            return
        with caught_signals() as self.signals:
            yield

    def after_step(self, last: bool) -> bool:
        """Write a checkpoint if it is time, or the last step; return whether the run is to be interrupted."""
        if self.checkpoints is None:
            return False
        late = time.monotonic() - self.written >= self.checkpoints.every_seconds
        stop = bool(self.signals) or self.checkpoints.interrupted()
        wishes = self.ranks.gather([float(late), float(stop)])
        save, interrupt = (any(column) for column in zip(*wishes, strict=True))
        if save or interrupt or last:
            self._write(self.checkpoints)
        return interrupt and not last

    def interruption(self, steps: int) -> Interrupted:
        """Say where the run stopped."""
        assert self.checkpoints is not None
        done = f"after {self.state.progress.iteration} of {steps} iterations"
        return Interrupted(f"training stopped {done}; the same command goes on from {self.checkpoints.folder}")

    def _write(self, checkpoints: Checkpoints) -> None:
        iteration = self.state.progress.iteration
        checkpoints.write(iteration, self.part, self.state.own())
        if self.ranks.rank == 0:
            checkpoints.write(iteration, COMMON, self.state.common() | {"identity": self.identity})
        self.written = time.monotonic()

    def _newest(self, whole: list[int]) -> int:
        """Return the newest iteration that every rank has, 0 if there is none; ranks keep few."""
        lists = self.ranks.gather([float(iteration) for iteration in (whole + [0] * 4)[:4]])
        return int(max(set.intersection(*map(set, lists)) | {0.0}))

    def _parts(self) -> list[str]:
        return [self.part, COMMON] if self.ranks.rank == 0 else [self.part]

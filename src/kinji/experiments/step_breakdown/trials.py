"""One network, one batch and one optimizer, whose steps are timed stage by stage and as a whole."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn.functional import cross_entropy

from kinji.cost.counts import NORMALIZATIONS
from kinji.cost.networks import build, is_transformer
from kinji.cost.transfer import STAGES
from kinji.experiments.cases import StepBreakdownCase
from kinji.experiments.step_breakdown.stopwatch import HostClock, Stopwatch
from kinji.kfac import KFAC, Communicator, SerialCommunicator, TorchCommunicator
from kinji.kfac.packing import pack, unpack

Row = dict[str, int | float | str | bool]

METHODS = {
    "accumulate": "factors",
    "form_statistics": "sampled gradients",
    "start_statistics": "ReduceScatterV of input statistics",
    "reduce_gradients": "ReduceScatterV of gradients",
    "reduce_statistics": "ReduceScatterV of other statistics",
    "invert": "inverses",
    "precondition": "preconditioning",
    "update": "update",
    "gather_weights": "AllGatherV of weights",
}
"""The stage that each method of `kinji.kfac.KFAC` is."""
FINISHED = {"start_statistics": "factors", "reduce_gradients": "backward", "gather_weights": "preconditioning"}
"""Before which methods ranks wait for each other, and the stage that this is charged to."""
REFRESH_INTERVAL = 2
"""Every other step refreshes statistics and inverses, so that steps with and without are measured in turn."""


class WatchedCommunicator(TorchCommunicator):
    """Measures how long the first exchange of a step takes on its own, or how long is waited for it.

    Parameters
    ----------
    watch
        While it runs, an exchange ends before anything else goes on: each stage is measured on its own.
    """

    def __init__(self, watch: Stopwatch) -> None:
        super().__init__()
        self._watch = watch
        self.waits: list[tuple[Any, Any]] = []

    def start(self, segments: Any, received: Any) -> Callable[[], None]:
        """Start to exchange segments with every other rank."""
        number, began = len(self.waits), self._watch.clock.mark()
        self.waits.append((began, began))
        finish = super().start(segments, received)
        if self._watch.running:
            self._wait(finish, number, began)
            return lambda: None
        return lambda: self._wait(finish, number, self._watch.clock.mark())

    def _wait(self, finish: Callable[[], None], number: int, since: Any) -> None:
        finish()
        self.waits[number] = (since, self._watch.clock.mark())


class Trial:
    """One network and batch, trained by the optimizer of a subclass.

    Parameters
    ----------
    case
        Network, batch, precision.
    watch
        Times the stages.
    device
        "cpu" or "cuda".
    alone
        Whether every rank trains its own copy, without the others.
    """

    optimizer: str

    def __init__(self, case: StepBreakdownCase, watch: Stopwatch, device: str, *, alone: bool = False) -> None:
        self.case, self.watch, self.device = case, watch, device
        self.communicator: Communicator = SerialCommunicator() if alone else WatchedCommunicator(watch)
        torch.manual_seed(case.seed)
        size = case.tokens if is_transformer(case.network) else case.pixels
        self.model, example = build(case.network, size, device)
        torch.manual_seed(case.seed + 1 + distributed.get_rank())
        self.inputs = torch.randn(case.batch_per_rank, *example, device=device)
        self.labels = torch.randint(0, 1000, (case.batch_per_rank,), device=device)
        self.waiting: defaultdict[str, float] = defaultdict(float)
        watch.watch("normalization", (m for m in self.model.modules() if isinstance(m, NORMALIZATIONS)))

    def step(self) -> None:
        """Take one training step."""
        raise NotImplementedError

    def traffic(self) -> Iterator[Row]:
        """Yield the bytes of every collective of a step; all-reduce passes over its vector twice, its halves once."""
        raise NotImplementedError

    def names(self) -> Row:
        """Name the optimizer and, of K-FAC, its variant and whether the next step refreshes statistics."""
        return {"optimizer": self.optimizer}

    def observe(self, timed: bool) -> Iterator[Row]:
        """Take one step; yield its seconds and, if its stages were timed, theirs."""
        names, step = self.names(), self._take(timed)
        stages = self.watch.read()
        if timed:
            step["unattributed_seconds"] = float(step["step_seconds"]) - sum(stages.values())
        yield names | {"quantity": "step", "parts_timed": timed} | step
        for stage, seconds in stages.items():
            row = names | {"quantity": "part", "part": STAGES[stage], "stage": stage, "part_seconds": seconds}
            yield row | {"waiting_seconds": self.waiting[stage]}

    def _take(self, timed: bool) -> Row:
        """Take a step; return its seconds by the device's clock, by the host's, and what was waited for at first."""
        self.watch.reset(running=timed)
        self.waiting.clear()
        waits = getattr(self.communicator, "waits", [])
        waits.clear()
        host = HostClock()
        self._settle()
        distributed.barrier()
        host_start, start = host.mark(), self.watch.clock.mark()
        self.step()
        end = self.watch.clock.mark()
        self._settle()
        row: Row = {"step_seconds": self.watch.clock.seconds(start, end), "host_seconds": host.mark() - host_start}
        return row | ({"first_exchange_seconds": self.watch.clock.seconds(*waits[0])} if waits else {})

    def differentiate(self, between: Callable[[Tensor], None] = lambda output: None) -> None:
        """Forward and backward pass; ``between`` sees the output."""
        with self.watch.stage("forward"), self._autocast():
            output = self.model(self.inputs)
            loss = self._loss(output.float())
        between(output)
        with self.watch.stage("backward"):
            loss.backward()

    def meet(self, stage: str) -> None:
        """Wait for the other ranks, at the expense of the stage just finished."""
        if self.watch.running and self.communicator.size > 1:
            with self.watch.stage(stage):
                start = HostClock().mark()
                distributed.barrier()
                self.waiting[stage] += HostClock().mark() - start

    def _loss(self, output: Tensor) -> Tensor:
        """Cross-entropy of classes, or half the squared error of a block's output; means over the batch."""
        if is_transformer(self.case.network):
            return 0.5 * (output - self.inputs).square().sum(-1).mean()
        return cross_entropy(output, self.labels)

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device, torch.bfloat16, enabled=self.case.precision == "bf16")

    def _settle(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


class SGDTrial(Trial):
    """Momentum SGD with all-reduced gradients."""

    optimizer = "SGD"

    def __init__(self, case: StepBreakdownCase, watch: Stopwatch, device: str, *, alone: bool = False) -> None:
        super().__init__(case, watch, device, alone=alone)
        self.sgd = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)
        self.vector = torch.empty(sum(parameter.numel() for parameter in self.model.parameters()), device=device)

    def step(self) -> None:
        """Differentiate, average the gradients, update."""
        with self.watch.stage("update"):
            self.sgd.zero_grad()
        self.differentiate()
        if self.communicator.size > 1:
            self.meet("backward")
            with self.watch.stage("AllReduce of gradients"):
                self._all_reduce()
        with self.watch.stage("update"):
            self.sgd.step()

    def traffic(self) -> Iterator[Row]:
        """Yield the one collective."""
        gradients = sum(parameter.nbytes for parameter in self.model.parameters())
        yield _traffic(self.names(), "AllReduce", "gradients", gradients, passes=2)

    def _all_reduce(self) -> None:
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        pack(gradients, self.vector, symmetric=False)
        distributed.all_reduce(self.vector)
        unpack(self.vector.div_(distributed.get_world_size()), gradients, symmetric=False)


class KFACTrial(Trial):
    """K-FAC that refreshes statistics and inverses in every other step.

    Parameters
    ----------
    fisher, batch_norm
        As `kinji.kfac.KFAC` names them.
    """

    optimizer = "K-FAC"

    def __init__(
        self,
        case: StepBreakdownCase,
        watch: Stopwatch,
        device: str,
        fisher: str = "empirical",
        batch_norm: str = "unit-wise",
        *,
        alone: bool = False,
    ) -> None:
        super().__init__(case, watch, device, alone=alone)
        self.fisher, self.batch_norm = fisher, batch_norm
        # one rank that stands for several computes as they do
        self.kfac = self._optimizer(columns=not alone)
        self._carried: dict[float, tuple[Row, dict[str, int]]] = {}
        for method, stage in METHODS.items():
            setattr(self.kfac, method, watch.wrap(stage, getattr(self.kfac, method)))
        for method, finished in FINISHED.items():
            setattr(self.kfac, method, self._after_meeting(finished, getattr(self.kfac, method)))

    def step(self) -> None:
        """Differentiate, and let the optimizer do its stages."""
        with self.watch.stage("update"):
            self.kfac.zero_grad()
        self.communicator.carried_bytes.clear()
        self.differentiate(self.kfac.form_statistics if self.fisher == "sampled" else lambda output: None)
        self.kfac.step()

    def names(self) -> Row:
        """Name the variant, and whether the next step refreshes statistics."""
        refreshed = float(self.kfac.steps % REFRESH_INTERVAL == 0)
        names: Row = {"fisher": self.fisher, "batch_norm": self.batch_norm, "refreshed": refreshed}
        return super().names() | names

    def observe(self, timed: bool) -> Iterator[Row]:
        """Take a step that refreshes statistics, then one that does not."""
        for _ in range(REFRESH_INTERVAL):
            names, self.kfac.overlap = self.names(), not timed
            yield from super().observe(timed)
            self._carried[float(names["refreshed"])] = (names, dict(self.communicator.carried_bytes))

    def traffic(self) -> Iterator[Row]:
        """Yield the collectives of the last step with, and of the last without refreshed statistics."""
        for names, carried_bytes in self._carried.values():
            for content, carried in sorted(carried_bytes.items()):
                collective = "AllGatherV" if content == "weights" else "ReduceScatterV"
                yield _traffic(names, collective, content, carried, passes=1)

    def _optimizer(self, columns: bool) -> KFAC:
        options: dict[str, Any] = {"columns": columns, "fisher": self.fisher, "normalization": self.batch_norm}
        if is_transformer(self.case.network):
            options["likelihood"] = "normal"
        if self.case.precision == "bf16":
            options["statistics_dtype"] = torch.bfloat16
        options |= {"statistics_interval": REFRESH_INTERVAL, "communicator": self.communicator}
        return KFAC(self.model, lr=1e-4, damping=1e-2, **options)

    def _after_meeting(self, stage: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def met(*arguments: Any) -> Any:
            self.meet(stage)
            return method(*arguments)

        return met


def _traffic(names: Row, collective: str, content: str, vector_bytes: int, passes: int) -> Row:
    row: Row = {"quantity": "traffic", "collective": collective, "content": content}
    return names | row | {"vector_bytes": vector_bytes, "passes": passes}

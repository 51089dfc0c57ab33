"""Where the time of one training step goes, for momentum SGD and for K-FAC.

The command starts the ranks itself; each trains torchvision's ResNet on its own part of a random batch. Both optimizers
take turns in one process group. A step is split into the seven parts of Yokota, fig. 4; "K-FAC" is forming, inverting
and applying the Fisher blocks, "K-FAC communication" the ReduceScatterV of the statistics with their packing, "SGD
communication" the all-reduce of the gradients or its two halves (ReduceScatterV of gradients, AllGatherV of weights).
A rank that waits for the others before a collective is charged to the part it has just finished, and the
waiting is recorded beside it. Each repetition also times a whole step with nothing inside it being timed.

``--device cuda`` takes one GPU of this machine for each rank; not yet run on a GPU.
"""

from __future__ import annotations

import json
import resource
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

import torch
import torchvision
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn.functional import cross_entropy

from kinji.errors import KinjiError
from kinji.experiments.cases import StepBreakdownCase
from kinji.experiments.context import Context
from kinji.experiments.step_model import model
from kinji.experiments.stopwatch import Stopwatch
from kinji.kfac import KFAC, Communicator, SerialCommunicator, TorchCommunicator
from kinji.kfac.blocks import Block, KroneckerBlock, UnitWiseBlock, fisher_blocks
from kinji.kfac.ownership import OwnershipRule, assign_owners, makespan
from kinji.kfac.packing import pack, unpack
from kinji.training.models import ResidualNetwork

Row = dict[str, int | float | str | bool]

PARTS = ("forward", "backward", "normalization", "SGD communication", "update", "K-FAC", "K-FAC communication")
STAGES = {
    "accumulate": "K-FAC",
    "start_statistics": "K-FAC communication",
    "reduce_gradients": "SGD communication",
    "reduce_statistics": "K-FAC communication",
    "invert": "K-FAC",
    "precondition": "K-FAC",
    "update": "update",
    "gather_weights": "SGD communication",
}
"""The part that each stage of `kinji.kfac.KFAC` belongs to."""
GPUS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)


def measure(case: StepBreakdownCase, context: Context) -> Iterator[Row]:
    """Yield the parts of every repetition on every rank, then what was sent, who owns what, and rank-count equality.

    Raises
    ------
    KinjiError
        There are fewer GPUs than ranks.
    """
    if case.fabric:
        yield from model(case)
        return
    if context.device == "cuda" and torch.cuda.device_count() < case.ranks:
        raise KinjiError(
            f"{case.ranks} ranks need as many GPUs, this machine has {torch.cuda.device_count()}: lower --ranks."
        )
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_rank, (case, context, folder), nprocs=case.ranks)
        for rank in range(case.ranks):
            yield from json.loads((Path(folder) / f"{rank}.json").read_text())


def _rank(rank: int, case: StepBreakdownCase, context: Context, folder: str) -> None:
    torch.set_num_threads(max(1, context.threads // case.ranks))
    if context.device == "cuda":
        torch.cuda.set_device(rank)
    backend = "nccl" if context.device == "cuda" else "gloo"
    store = f"file://{folder}/store"
    distributed.init_process_group(backend, init_method=store, rank=rank, world_size=case.ranks)
    rows = [row | {"rank": rank} for row in _observe(case, context)]
    (Path(folder) / f"{rank}.json").write_text(json.dumps(rows))
    distributed.destroy_process_group()


def _observe(case: StepBreakdownCase, context: Context) -> Iterator[Row]:
    """Let both optimizers take turns (the first round is warm-up), then state what does not depend on the clock."""
    watch = Stopwatch(context.device)
    trials = (SGDTrial(case, watch), KFACTrial(case, watch))
    rounds: Iterable[int] = range(case.repetitions + 1)
    if distributed.get_rank() == 0:
        rounds = context.progress.track(rounds, "rounds of SGD and K-FAC")
    for repetition in rounds:
        rows = [row for timed in (True, False) for trial in trials for row in trial.observe(timed)]
        if repetition > 0:
            yield from (row | {"repetition": repetition - 1} for row in rows)
    yield from (row for trial in trials for row in trial.traffic())
    yield {"quantity": "memory", "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}
    yield {"quantity": "equality", "relative_difference": rank_count_difference(context.device)}
    if distributed.get_rank() == 0:
        blocks = fisher_blocks(trials[0].model, "unit-wise")
        yield from (row for block in blocks for row in factor_rows(block))
        yield from ownership_rows(blocks)


class Trial:
    """One network, one batch and one optimizer; subclasses say how a step goes.

    Parameters
    ----------
    case
        Network and batch.
    watch
        Times the parts.
    """

    optimizer: str

    def __init__(self, case: StepBreakdownCase, watch: Stopwatch) -> None:
        torch.manual_seed(case.seed)
        self.model = torchvision.models.get_model(case.network, weights=None).to(watch.device)
        torch.manual_seed(case.seed + 1 + distributed.get_rank())
        shape = (case.batch_per_rank, 3, case.pixels, case.pixels)
        self.images = torch.randn(shape, device=watch.device)
        self.labels = torch.randint(0, 1000, (case.batch_per_rank,), device=watch.device)
        self.watch = watch
        self.waiting: defaultdict[str, float] = defaultdict(float)
        watch.watch("normalization", (m for m in self.model.modules() if isinstance(m, nn.BatchNorm2d)))

    def step(self) -> None:
        """Take one training step."""
        raise NotImplementedError

    def traffic(self) -> Iterator[Row]:
        """Yield the bytes of every collective of a step; all-reduce passes over its vector twice, its halves once."""
        raise NotImplementedError

    def observe(self, timed: bool) -> Iterator[Row]:
        """Take one step; yield its seconds and, if its parts were timed, theirs."""
        self.watch.reset(running=timed)
        self.waiting.clear()
        distributed.barrier()
        start = self.watch.now()
        self.step()
        seconds = self.watch.now() - start
        step: Row = {"quantity": "step", "optimizer": self.optimizer, "parts_timed": timed, "step_seconds": seconds}
        if not timed:
            yield step
            return
        yield step | {"unattributed_seconds": seconds - sum(self.watch.seconds.values())}
        for part in PARTS:
            row: Row = {"quantity": "part", "optimizer": self.optimizer, "part": part}
            yield row | {"part_seconds": self.watch.seconds[part], "waiting_seconds": self.waiting[part]}

    def differentiate(self) -> None:
        """Forward and backward pass."""
        with self.watch.part("forward"):
            loss = cross_entropy(self.model(self.images), self.labels)
        with self.watch.part("backward"):
            loss.backward()

    def meet(self, part: str) -> None:
        """Wait for the other ranks, at the expense of the part just finished."""
        if self.watch.running:
            with self.watch.part(part):
                start = self.watch.now()
                distributed.barrier()
                self.waiting[part] += self.watch.now() - start


class SGDTrial(Trial):
    """Momentum SGD with all-reduced gradients."""

    optimizer = "SGD"

    def __init__(self, case: StepBreakdownCase, watch: Stopwatch) -> None:
        super().__init__(case, watch)
        self.sgd = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)
        self.vector = torch.empty(sum(parameter.numel() for parameter in self.model.parameters()), device=watch.device)

    def step(self) -> None:
        """Differentiate, average the gradients, update."""
        with self.watch.part("update"):
            self.sgd.zero_grad()
        self.differentiate()
        self.meet("backward")
        with self.watch.part("SGD communication"):
            self._all_reduce()
        with self.watch.part("update"):
            self.sgd.step()

    def traffic(self) -> Iterator[Row]:
        """Yield the one collective."""
        gradients = sum(parameter.nbytes for parameter in self.model.parameters())
        yield _traffic(self.optimizer, "AllReduce", "gradients", gradients, passes=2)

    def _all_reduce(self) -> None:
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        pack(gradients, self.vector, symmetric=False)
        distributed.all_reduce(self.vector)
        unpack(self.vector.div_(distributed.get_world_size()), gradients, symmetric=False)


class KFACTrial(Trial):
    """K-FAC that refreshes statistics and inverses in every step."""

    optimizer = "K-FAC"

    def __init__(self, case: StepBreakdownCase, watch: Stopwatch) -> None:
        super().__init__(case, watch)
        self.communicator = TorchCommunicator()
        self.kfac = KFAC(self.model, lr=1e-3, damping=1e-2, communicator=self.communicator)
        for stage, part in STAGES.items():
            setattr(self.kfac, stage, watch.wrap(part, getattr(self.kfac, stage)))
        for stage, finished in (("reduce_gradients", "backward"), ("gather_weights", "K-FAC")):
            setattr(self.kfac, stage, self._after_meeting(finished, getattr(self.kfac, stage)))

    def step(self) -> None:
        """Differentiate, and let the optimizer do its stages."""
        with self.watch.part("update"):
            self.kfac.zero_grad()
        self.communicator.carried_bytes.clear()
        self.differentiate()
        self.kfac.step()

    def traffic(self) -> Iterator[Row]:
        """Yield the three collectives of the last step."""
        for content, carried in sorted(self.communicator.carried_bytes.items()):
            collective = "AllGatherV" if content == "weights" else "ReduceScatterV"
            yield _traffic(self.optimizer, collective, content, carried, passes=1)

    def _after_meeting(self, part: str, stage: Callable[..., Any]) -> Callable[..., Any]:
        def met(*arguments: Any) -> Any:
            self.meet(part)
            return stage(*arguments)

        return met


def _traffic(optimizer: str, collective: str, content: str, vector_bytes: int, passes: int) -> Row:
    names: Row = {"quantity": "traffic", "optimizer": optimizer, "collective": collective, "content": content}
    return names | {"vector_bytes": vector_bytes, "passes": passes}


def factor_rows(block: Block) -> Iterator[Row]:
    """Yield the size and number of the symmetric matrices that a block's statistics are made of."""
    row: Row = {"quantity": "factor", "layer": block.name}
    if isinstance(block, KroneckerBlock):
        yield row | {"factor": "A", "size": block.inputs, "matrices": 1}
        yield row | {"factor": "G", "size": block.outputs, "matrices": 1}
    elif isinstance(block, UnitWiseBlock):
        yield row | {"factor": "unit-wise", "size": 2, "matrices": len(block.parameters[0])}


def ownership_rows(blocks: list[Block]) -> Iterator[Row]:
    """Yield the busiest rank's share of the inversion work for each rule and number of ranks."""
    costs = [block.flops for block in blocks]
    for ranks in GPUS:
        for rule in get_args(OwnershipRule):
            busiest = makespan(costs, assign_owners(costs, ranks, rule))
            row: Row = {"quantity": "ownership", "rule": rule, "owning_ranks": ranks, "blocks": len(blocks)}
            yield row | {"busiest_flops": busiest, "all_flops": sum(costs)}


def rank_count_difference(device: str, steps: int = 3, images_per_rank: int = 4) -> float:
    """Compare the weights of a small network trained in double precision on all ranks and on one.

    Returns
    -------
    float
        Largest relative difference of a parameter's norm. Batch normalizations are frozen: as published, each
        rank would normalize by its own part of the batch.
    """
    shared, alone = (_train(device, steps, images_per_rank, c) for c in (TorchCommunicator(), SerialCommunicator()))
    return max(((one - other).norm() / other.norm()).item() for one, other in zip(shared, alone, strict=True))


def _train(device: str, steps: int, images_per_rank: int, communicator: Communicator) -> list[Tensor]:
    """Train on this rank's part of the batch, or on all of it if the communicator knows no other rank."""
    torch.manual_seed(0)
    model = ResidualNetwork((4, 8)).double().to(device).eval()
    optimizer = KFAC(model, lr=0.1, damping=1e-2, communicator=communicator)
    for _ in range(steps):
        images = torch.randn(images_per_rank * distributed.get_world_size(), 1, 8, 8, dtype=torch.float64)
        mine = slice(communicator.rank, None, communicator.size)
        optimizer.zero_grad()
        labels = torch.arange(len(images)) % 10
        cross_entropy(model(images[mine].to(device)), labels[mine].to(device)).backward()
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]

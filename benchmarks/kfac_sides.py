"""What `kfac.py` times: a task, a step of each side on it, and the parts of ours with their floors."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import math
import resource
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD

from kinji.kfac import KFAC, statistics
from kinji.kfac.gathering import Statistic
from kinji.kfac.kronecker import KroneckerBlock
from kinji.kfac.products import full_precision, times_transposed

Step = Callable[[], object]
DAMPING = 1e-2
NEVER = 10**9


class Task:
    """A network and a random batch on the device and in the precision of the options."""

    def __init__(self, options: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.options, self.device = options, torch.device(options.device)
        self.cuda = self.device.type == "cuda"
        self.images, self.labels = self.batch()

    def batch(self) -> tuple[Tensor, Tensor]:
        """Return another random batch."""
        images = torch.randn(self.options.batch, 3, self.options.pixels, self.options.pixels)
        labels = torch.randint(0, 1000, (self.options.batch,)).to(self.device)
        return images.to(self.device, memory_format=self._memory), labels

    def network(self) -> nn.Module:
        """Return the network with fresh weights."""
        model = torchvision.models.get_model(self.options.network, weights=None)
        return model.to(self.device, memory_format=self._memory)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of a forward pass."""
        return (
            torch.autocast(self.options.device, torch.bfloat16) if self.options.precision == "bf16" else nullcontext()
        )

    def kfac(self, model: nn.Module, **options: Any) -> KFAC:
        """Return K-FAC with the options of the precision."""
        dtype = torch.bfloat16 if self.options.precision == "bf16" else None
        return KFAC(model, lr=1e-3, damping=DAMPING, statistics_dtype=dtype, **options)

    def seconds(self, step: Step) -> float:
        """Time one call."""
        if self.cuda:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            step()
            end.record()
            torch.cuda.synchronize()
            return start.elapsed_time(end) / 1e3
        begun = time.perf_counter()
        step()
        return time.perf_counter() - begun

    def product_rate(self) -> float:
        """Return the operations a second of a square product in single precision."""
        n = 8192 if self.cuda else 2048
        x = torch.randn(n, n, device=self.device)
        with full_precision():
            return 2 * n**3 / min(self.seconds(lambda: times_transposed(x, x)) for _ in range(8))

    def peak_bytes(self) -> int:
        """Return the most memory that this process has held so far, on the device if it is not a CPU."""
        return (
            torch.cuda.max_memory_allocated()
            if self.cuda
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        )

    @property
    def _memory(self) -> torch.memory_format:
        return torch.channels_last if self.cuda else torch.contiguous_format


def plain_step(task: Task, model: nn.Module, *optimizers: Any) -> Step:
    """Return a step in which the optimizers follow the backward pass."""

    def step() -> None:
        optimizers[-1].zero_grad()
        with task.autocast():
            loss = cross_entropy(model(task.images), task.labels)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()

    return step


def sgd(task: Task) -> Step:
    """Return a step of SGD."""
    return plain_step(task, model := task.network(), SGD(model.parameters(), lr=1e-3, momentum=0.9))


def kfac_pytorch(task: Task) -> Step:
    """Return a step of github.com/gpauloski/kfac-pytorch."""
    peer, model = imported("kfac.preconditioner"), task.network()
    preconditioner = peer.KFACPreconditioner(model, damping=DAMPING, lr=1e-3, compute_method="inverse")
    return plain_step(task, model, preconditioner, SGD(model.parameters(), lr=1e-3, momentum=0.9))


def asdl(task: Task) -> Step:
    """Return a step of github.com/kazukiosawa/asdl."""
    peer, model = imported("asdl"), task.network()
    config = peer.PreconditioningConfig(data_size=len(task.images), damping=DAMPING)
    maker = peer.KfacGradientMaker(model, config, fisher_type="fisher_emp")
    sgd = SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        sgd.zero_grad()
        output = maker.setup_model_call(model, task.images)
        maker.setup_loss_call(cross_entropy, output, task.labels)
        maker.forward_and_backward()
        sgd.step()

    return step


class Parts:
    """Seconds spent in functions, by what they do; on a CUDA device, between events on the stream they run on."""

    def __init__(self, task: Task) -> None:
        self._cuda, self._threads = task.cuda, task.options.threads
        self.seconds: defaultdict[str, list[float]] = defaultdict(list)
        self.now: defaultdict[str, list[tuple[Any, Any, float]]] = defaultdict(list)

    def watch(self, owner: Any, name: str, part: str) -> None:
        """Time every call of a function or method."""
        function = getattr(owner, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            start = self._tick()
            result = function(*arguments, **options)
            self.now[part].append((start, self._tick(), self._share()))
            return result

        setattr(owner, name, timed)

    def end(self) -> None:
        """End a repetition."""
        if self._cuda:
            torch.cuda.synchronize()
        for part, calls in self.now.items():
            self.seconds[part].append(sum(self._between(start, end) * share for start, end, share in calls))
        self.now.clear()

    def _share(self) -> float:
        """Threads that share the work out, each one's torch keeping to it, count for one together."""
        return torch.get_num_threads() / self._threads

    def _tick(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, start: Any, end: Any) -> float:
        return start.elapsed_time(end) / 1e3 if self._cuda else end - start


class OurSide:
    """K-FAC on a network of its own, whose clocks are turned so that a step is of the kind wanted."""

    def __init__(self, task: Task, **options: Any) -> None:
        self.model = task.network()
        self.kfac = task.kfac(self.model, **options)
        self.parts = Parts(task)
        self._task, self._step = task, plain_step(task, self.model, self.kfac)

    def watch(self) -> None:
        """Time the parts of steps that refresh everything."""
        self.parts.watch(self.kfac, "invert", "inverses")
        self.parts.watch(self.kfac, "precondition", "preconditioning")
        self.parts.watch(statistics, "input_columns", "im2col")
        self.parts.watch(statistics, "add_gram", "factor products")

    def step(self, kind: str) -> None:
        """Take a step of the kind P, F or FI."""
        for clock in self.kfac.clocks.values():
            clock.due = NEVER if kind == "P" else 0
        self.kfac.inverse_interval = 1 if kind == "FI" else NEVER
        self.kfac.steps = max(1, self.kfac.steps)
        self._step()
        self.parts.end() if kind == "FI" else self.parts.now.clear()

    def floors(self, rate: float) -> dict[str, float]:
        """Return the least seconds of each part of a step that refreshes everything, at operations a second."""
        return {part: operations / rate for part, operations in self.count(self.kfac.clocks).items()}

    def count(self, formed: Collection[Statistic]) -> Counter[str]:
        """Return the operations of each part of a step that refreshes some statistics."""
        counts: Counter[str] = Counter()
        positions = self._positions
        for block in self.kfac.blocks:
            if isinstance(block, KroneckerBlock):
                sizes = block.inputs, block.outputs
                refreshed = [n for k, n in enumerate(sizes) if (block, k) in formed]
                counts["factor products"] += sum(positions[block.name] * n * n for n in refreshed)
                counts["inverses"] += sum(n**3 for n in sizes) // 3 if refreshed else 0
                counts["preconditioning"] += 2 * math.prod(sizes) * sum(sizes)
        return counts

    @cached_property
    def _positions(self) -> dict[str, int]:
        """Return the positions of each layer's output in the batch."""
        positions: dict[str, int] = {}
        for name, module in self.model.named_modules():
            module.register_forward_hook(
                lambda _m, _i, out, name=name: positions.__setitem__(name, out.numel() // out.shape[1])
            )
        with torch.no_grad():
            self.model(self._task.images)
        return positions


def our_step(kind: str, **options: Any) -> Callable[[Task], Step]:
    """Return what makes a step of ours of a kind."""
    return lambda task: partial(OurSide(task, **options).step, kind)


class AdaptiveSide(OurSide):
    """K-FAC with adaptive intervals, on a new random batch in each step."""

    def __init__(self, task: Task) -> None:
        super().__init__(task, statistics_interval="adaptive")
        self.operations = 0

    def next_step(self) -> float:
        """Take a step, count the operations of what it refreshes, and return its seconds."""
        self._task.images, self._task.labels = self._task.batch()
        before = {statistic: clock.formed for statistic, clock in self.kfac.clocks.items()}
        seconds = self._task.seconds(self._step)
        formed = [statistic for statistic, clock in self.kfac.clocks.items() if clock.formed > before[statistic]]
        self.operations += self.count(formed).total()
        return seconds


PEERS = {"kfac-pytorch, refreshed": ("kfac", kfac_pytorch), "ASDL, refreshed": ("asdl", asdl)}


@contextmanager
def without_this_folder() -> Iterator[None]:
    """Import peers: a file of this folder is called like the package of kfac-pytorch."""
    path = sys.path
    sys.path = [entry for entry in path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]
    try:
        yield
    finally:
        sys.path = path


def imported(package: str) -> Any:
    """Import a peer."""
    with without_this_folder():
        return importlib.import_module(package)


def peers() -> dict[str, Callable[[Task], Step]]:
    """Return the peers that are installed."""
    with without_this_folder():
        return {name: make for name, (package, make) in PEERS.items() if importlib.util.find_spec(package)}


def set_up(options: argparse.Namespace) -> Task:
    """Set threads and precision of a process."""
    torch.set_num_threads(options.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = options.precision == "tf32"
    return Task(options)

"""Side by side: seconds of one training step of SGD, of K-FAC here, and of peers' K-FAC where they are installed.

``python benchmarks/kfac.py [--json FILE] [--network resnet50] [--pixels 64] [--batch 32] [--threads 2]``
``python benchmarks/kfac.py --device cuda --pixels 224 --precision fp32|tf32|bf16``

A K-FAC step is timed in three kinds: "P" reuses statistics and inverses and only preconditions, "F" forms statistics
too, "FI" inverts as well. "1/1" is FI in every step; "10/100" forms statistics in every tenth and inverts in every
hundredth step, its mean made of the three kinds; "adaptive" is the mean of its first steps, on a new random batch each.
Sides take turns, and the minimum of the repetitions counts. Peers run with their own defaults, but the inverse in place
of the eigenvalue form, and the empirical Fisher. Peak memory is that of a process for each side alone.

Floors are operations over the rate of a square single-precision product measured in the same run: one triangle of each
factor product, n^3 / 3 of each factorization, 2 i o (i + o) of each preconditioning.

On a CUDA device times are those between events, networks are channels-last, and "one stream" forms the statistics
within the backward pass instead of beside it. TF32 holds for the network and the factor products alone; with BF16 the
network runs under autocast, and factor products take operands of that type.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD

from kinji.kfac import KFAC, statistics
from kinji.kfac.kronecker import KroneckerBlock
from kinji.kfac.products import full_precision, times_transposed

Step = Callable[[], object]
DAMPING = 1e-2
NEVER = 10**9
ADAPTIVE_STEPS = 8


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
    peer, model = importlib.import_module("kfac.preconditioner"), task.network()
    preconditioner = peer.KFACPreconditioner(model, damping=DAMPING, lr=1e-3, compute_method="inverse")
    return plain_step(task, model, preconditioner, SGD(model.parameters(), lr=1e-3, momentum=0.9))


def asdl(task: Task) -> Step:
    """Return a step of github.com/kazukiosawa/asdl."""
    peer, model = importlib.import_module("asdl"), task.network()
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


PEERS = {"kfac-pytorch, refreshed": ("kfac", kfac_pytorch), "ASDL, refreshed": ("asdl", asdl)}


class Parts:
    """Seconds spent in functions, by what they do; on a CUDA device, between events on the stream they run on."""

    def __init__(self, task: Task) -> None:
        self._cuda = task.cuda
        self.seconds: defaultdict[str, list[float]] = defaultdict(list)
        self.now: defaultdict[str, list[tuple[Any, Any]]] = defaultdict(list)

    def watch(self, owner: Any, name: str, part: str) -> None:
        """Time every call of a function or method."""
        function = getattr(owner, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            start = self._tick()
            result = function(*arguments, **options)
            self.now[part].append((start, self._tick()))
            return result

        setattr(owner, name, timed)

    def end(self) -> None:
        """End a repetition."""
        if self._cuda:
            torch.cuda.synchronize()
        for part, calls in self.now.items():
            self.seconds[part].append(sum(self._between(start, end) for start, end in calls))
        self.now.clear()

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
        """Return the least seconds of each part at a rate in operations a second."""
        counts: defaultdict[str, float] = defaultdict(float)
        positions = self._count_positions()
        for block in self.kfac.blocks:
            if isinstance(block, KroneckerBlock):
                i, o = block.inputs, block.outputs
                counts["factor products"] += positions[block.name] * (i * i + o * o)
                counts["inverses"] += (i**3 + o**3) / 3
                counts["preconditioning"] += 2 * i * o * (i + o)
        return {part: operations / rate for part, operations in counts.items()}

    def _count_positions(self) -> dict[str, int]:
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
    return lambda task: (ours := OurSide(task, **options)) and (lambda: ours.step(kind))


def adaptive_step(task: Task) -> tuple[Step, KFAC]:
    """Return a step on a new random batch with adaptive intervals."""
    kfac = task.kfac(model := task.network(), statistics_interval="adaptive")
    batches = iter([task.batch() for _ in range(ADAPTIVE_STEPS)])

    def step() -> None:
        images, labels = next(batches)
        kfac.zero_grad()
        with task.autocast():
            loss = cross_entropy(model(images), labels)
        loss.backward()
        kfac.step()

    return step, kfac


def measure(task: Task, steps: dict[str, Step], repetitions: int) -> dict[str, list[float]]:
    """Return the seconds of each repetition of each side, interleaved, after one step of each to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repetition in range(-1, repetitions):
        for name, step in steps.items():
            elapsed = task.seconds(step)
            if repetition >= 0:
                seconds[name].append(elapsed)
    return seconds


def peers() -> dict[str, Callable[[Task], Step]]:
    """Return the peers that are installed."""
    return {name: make for name, (package, make) in PEERS.items() if importlib.util.find_spec(package)}


def set_up(options: argparse.Namespace) -> Task:
    """Set threads and precision of a process."""
    torch.set_num_threads(options.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = options.precision == "tf32"
    return Task(options)


def peak(options: argparse.Namespace, name: str) -> int:
    """Return the peak memory of some steps of one side, in a process of its own."""
    task = set_up(options)
    step = ({"SGD": sgd, "kinji, FI": our_step("FI")} | peers())[name](task)
    for _ in range(3):
        step()
    return task.peak_bytes()


def peaks(options: argparse.Namespace) -> dict[str, int]:
    """Return the peak memory of each side."""
    sides = ("SGD", "kinji, FI", *peers())
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        return dict(zip(sides, pool.map(partial(peak, options), sides), strict=True))


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write {name, value, unit, repetitions} for each side here")
    parser.add_argument("--network", default="resnet50", choices=("resnet18", "resnet50"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="fp32", choices=("fp32", "tf32", "bf16"))
    parser.add_argument("--pixels", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this machine has no CUDA device")
    if options.device == "cpu" and options.precision == "tf32":
        parser.error("--precision tf32: a CPU has none")
    return options


def main() -> None:
    """Print tables for people; write a list of measurements for machines."""
    sys.path.remove(str(Path(__file__).parent))  # this file is called like the package of kfac-pytorch
    options = arguments()
    memory = peaks(options)
    task = set_up(options)
    ours = OurSide(task)
    ours.watch()
    steps = {"SGD": sgd(task)} | {f"kinji, {kind}": lambda kind=kind: ours.step(kind) for kind in ("FI", "P", "F")}
    if task.cuda:
        one_stream = OurSide(task, overlap=False)
        steps["kinji, F, one stream"] = lambda: one_stream.step("F")
    steps |= {name: make(task) for name, make in peers().items()}
    seconds = measure(task, steps, options.repetitions)
    step, adaptive = adaptive_step(task)
    seconds["kinji, adaptive"] = [task.seconds(step) for _ in range(ADAPTIVE_STEPS)]
    report(task, seconds, ours, adaptive)
    print("peak memory, MB: " + ", ".join(f"{name} {size / 1e6:.0f}" for name, size in memory.items()))
    if options.json:
        timed = seconds | ours.parts.seconds
        rows = [
            {"name": name, "value": min(values), "unit": "s", "repetitions": values} for name, values in timed.items()
        ]
        rows += [
            {"name": f"peak, {name}", "value": size, "unit": "B", "repetitions": [size]}
            for name, size in memory.items()
        ]
        options.json.write_text(
            json.dumps([row | {"name": f"{options.network}: {row['name']}"} for row in rows]) + "\n"
        )


def report(task: Task, seconds: dict[str, list[float]], ours: OurSide, adaptive: KFAC) -> None:
    """Print each kind of step over SGD's, then each part over its floor."""
    rate, options = task.product_rate(), task.options
    best = {name: min(values) for name, values in seconds.items()}
    floors = ours.floors(rate)
    p, f, fi = (best[f"kinji, {kind}"] for kind in ("P", "F", "FI"))
    best["kinji, 10/100"] = (90 * p + 9 * f + fi) / 100
    best["kinji, adaptive"] = sum(seconds["kinji, adaptive"][1:]) / (ADAPTIVE_STEPS - 1)
    only_p, with_f = floors["preconditioning"], floors["preconditioning"] + floors["factor products"]
    least = {"kinji, P": only_p, "kinji, F": with_f, "kinji, FI": with_f + floors["inverses"]}
    least["kinji, 10/100"] = only_p + floors["factor products"] / 10 + floors["inverses"] / 100
    where = torch.cuda.get_device_name() if task.cuda else f"{options.threads} threads"
    print(f"\n{options.network}, {options.pixels} px, batch {options.batch}, {options.precision}, {where}")
    print(f"product: {rate / 1e9:.0f} GFLOP/s\n{'':<24}{'seconds':>10}{'over SGD':>10}{'extra over floor':>18}")
    for name, value in best.items():
        over = f"{(value - best['SGD']) / least[name]:>18.2f}" if name in least else ""
        print(f"{name:<24}{value:>10.4f}{value / best['SGD']:>10.2f}{over}")
    print(f"\n{'part of FI':<24}{'seconds':>10}{'floor':>10}{'over floor':>12}")
    for part, values in ours.parts.seconds.items():
        floor = floors.get(part)
        over = "" if floor is None else f"{floor:>10.4f}{min(values) / floor:>12.2f}"
        print(f"{part:<24}{min(values):>10.4f}{over}")
    intervals = [clock.interval for clock in adaptive.clocks.values()]
    print(f"adaptive intervals after {ADAPTIVE_STEPS} steps: {min(intervals)} to {max(intervals)}")


if __name__ == "__main__":
    main()

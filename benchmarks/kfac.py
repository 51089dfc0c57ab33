"""Side by side: seconds of one training step of SGD, of K-FAC here, and of peers' K-FAC where they are installed.

``python benchmarks/kfac.py [--json FILE] [--network resnet50] [--pixels 64] [--batch 32] [--threads 2]``

A K-FAC step is timed in three kinds: "P" reuses statistics and inverses and only preconditions, "F" forms statistics
too, "FI" inverts as well. "1/1" is FI in every step; "10/100" forms statistics in every tenth and inverts in every
hundredth step, its mean made of the three kinds; "adaptive" is the mean of its first steps, on a new random batch each.
Sides take turns, and the minimum of the repetitions counts. Peers run with their own defaults, but the inverse in place
of the eigenvalue form, and the empirical Fisher.

Floors are operations over the rate of a square single-precision product measured in the same run: one triangle of each
factor product, n^3 / 3 of each factorization, 2 i o (i + o) of each preconditioning.
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD

from kinji.kfac import KFAC, statistics
from kinji.kfac.blocks import KroneckerBlock
from kinji.kfac.products import times_transposed

Step = Callable[[], object]
DAMPING = 1e-2
NEVER = 10**9
ADAPTIVE_STEPS = 8


def plain_step(model: nn.Module, images: Tensor, labels: Tensor, *optimizers: Any) -> Step:
    """Return a step in which the optimizers follow the backward pass."""

    def step() -> None:
        optimizers[-1].zero_grad()
        cross_entropy(model(images), labels).backward()
        for optimizer in optimizers:
            optimizer.step()

    return step


def kfac_pytorch(model: nn.Module, images: Tensor, labels: Tensor) -> Step:
    """Return a step of github.com/gpauloski/kfac-pytorch."""
    peer = importlib.import_module("kfac.preconditioner")
    preconditioner = peer.KFACPreconditioner(model, damping=DAMPING, lr=1e-3, compute_method="inverse")
    return plain_step(model, images, labels, preconditioner, SGD(model.parameters(), lr=1e-3, momentum=0.9))


def asdl(model: nn.Module, images: Tensor, labels: Tensor) -> Step:
    """Return a step of github.com/kazukiosawa/asdl."""
    peer = importlib.import_module("asdl")
    config = peer.PreconditioningConfig(data_size=len(images), damping=DAMPING)
    maker = peer.KfacGradientMaker(model, config, fisher_type="fisher_emp")
    sgd = SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        sgd.zero_grad()
        output = maker.setup_model_call(model, images)
        maker.setup_loss_call(cross_entropy, output, labels)
        maker.forward_and_backward()
        sgd.step()

    return step


PEERS = {"kfac": ("kfac-pytorch, refreshed", kfac_pytorch), "asdl": ("ASDL, refreshed", asdl)}


class Parts:
    """Seconds spent in functions, by what they do."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, list[float]] = defaultdict(list)
        self.now: defaultdict[str, float] = defaultdict(float)

    def watch(self, owner: Any, name: str, part: str) -> None:
        """Time every call of a function or method."""
        function = getattr(owner, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            result = function(*arguments, **options)
            self.now[part] += time.perf_counter() - start
            return result

        setattr(owner, name, timed)

    def end(self) -> None:
        """End a repetition."""
        for part, seconds in self.now.items():
            self.seconds[part].append(seconds)
        self.now.clear()


class OurSide:
    """K-FAC on a network of its own, whose clocks are turned so that a step is of the kind wanted."""

    def __init__(self, options: argparse.Namespace, images: Tensor, labels: Tensor) -> None:
        self.kfac = KFAC(model := network(options), lr=1e-3, damping=DAMPING)
        self.parts = Parts()
        self.parts.watch(self.kfac, "invert", "inverses")
        self.parts.watch(self.kfac, "precondition", "preconditioning")
        self.parts.watch(statistics, "input_columns", "im2col")
        self.parts.watch(statistics, "add_gram", "factor products")
        self._step = plain_step(model, images, labels, self.kfac)

    def step(self, kind: str) -> None:
        """Take a step of the kind P, F or FI."""
        for clock in self.kfac.clocks.values():
            clock.due = NEVER if kind == "P" else 0
        self.kfac.inverse_interval = 1 if kind == "FI" else NEVER
        self.kfac.steps = max(1, self.kfac.steps)
        self._step()
        self.parts.end() if kind == "FI" else self.parts.now.clear()

    def floors(self, batch: int, rate: float) -> dict[str, float]:
        """Return the least seconds of each part at a rate in operations a second."""
        counts: defaultdict[str, float] = defaultdict(float)
        for block in self.kfac.blocks:
            if isinstance(block, KroneckerBlock):
                i, o = block.inputs, block.outputs
                counts["factor products"] += batch * self._positions[block.name] * (i * i + o * o)
                counts["inverses"] += (i**3 + o**3) / 3
                counts["preconditioning"] += 2 * i * o * (i + o)
        return {part: operations / rate for part, operations in counts.items()}

    def count_positions(self, model: nn.Module, images: Tensor) -> None:
        """Note the positions of each layer's output."""
        self._positions: dict[str, int] = {}
        for name, module in model.named_modules():
            module.register_forward_hook(
                lambda _m, _i, out, name=name: self._positions.__setitem__(name, out[0, 0].numel())
            )
        with torch.no_grad():
            model(images)


def adaptive_step(options: argparse.Namespace) -> tuple[Step, KFAC]:
    """Return a step on a new random batch with adaptive intervals."""
    kfac = KFAC(model := network(options), lr=1e-3, damping=DAMPING, statistics_interval="adaptive")

    def step() -> None:
        kfac.zero_grad()
        cross_entropy(
            model(torch.randn(options.batch, 3, options.pixels, options.pixels)), labels_of(options)
        ).backward()
        kfac.step()

    return step, kfac


def labels_of(options: argparse.Namespace) -> Tensor:
    """Return random labels of a batch."""
    return torch.randint(0, 1000, (options.batch,))


def network(options: argparse.Namespace) -> nn.Module:
    """Return the network with fresh weights."""
    return torchvision.models.get_model(options.network, weights=None)


def product_rate() -> float:
    """Return the operations a second of a square product."""
    x = torch.randn(2048, 2048)
    return 2 * 2048**3 / min(seconds_of(lambda: times_transposed(x, x)) for _ in range(8))


def seconds_of(step: Step) -> float:
    """Time one call."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def measure(steps: dict[str, Step], repetitions: int) -> dict[str, list[float]]:
    """Return the seconds of each repetition of each side, interleaved, after one step of each to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repetition in range(-1, repetitions):
        for name, step in steps.items():
            elapsed = seconds_of(step)
            if repetition >= 0:
                seconds[name].append(elapsed)
    return seconds


def sides(options: argparse.Namespace, ours: OurSide, images: Tensor, labels: Tensor) -> Iterator[tuple[str, Step]]:
    """Yield what takes turns."""
    model = network(options)
    yield "SGD", plain_step(model, images, labels, SGD(model.parameters(), lr=1e-3, momentum=0.9))
    for kind in ("FI", "P", "F"):
        yield f"kinji, {kind}", lambda kind=kind: ours.step(kind)
    for package, (name, peer) in PEERS.items():
        if importlib.util.find_spec(package):
            yield name, peer(network(options), images, labels)
        else:
            print(f"{name}: not installed, skipped")


def main() -> None:
    """Print tables for people; write a list of measurements for machines."""
    sys.path.remove(str(Path(__file__).parent))  # this file is called like the package of kfac-pytorch
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write {name, value, unit, repetitions} for each side here")
    parser.add_argument("--network", default="resnet50", choices=("resnet18", "resnet50"))
    parser.add_argument("--pixels", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    images, labels = torch.randn(options.batch, 3, options.pixels, options.pixels), labels_of(options)
    ours = OurSide(options, images, labels)
    ours.count_positions(network(options), images)
    seconds = measure(dict(sides(options, ours, images, labels)), options.repetitions)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    step, kfac = adaptive_step(options)
    seconds["kinji, adaptive"] = [seconds_of(step) for _ in range(ADAPTIVE_STEPS)]
    rate = product_rate()
    rows = [
        {"name": f"{options.network}: {name}", "value": min(values), "unit": "s", "repetitions": values}
        for name, values in seconds.items()
    ]
    rows += [
        {"name": f"{options.network}: {part}", "value": min(values), "unit": "s", "repetitions": values}
        for part, values in ours.parts.seconds.items()
    ]
    report(options, seconds, ours, rate, kfac)
    print(f"peak memory of the process that holds all sides: {peak:.0f} MiB")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


def report(
    options: argparse.Namespace, seconds: dict[str, list[float]], ours: OurSide, rate: float, adaptive: KFAC
) -> None:
    """Print each kind of step over SGD's, then each part over its floor."""
    best = {name: min(values) for name, values in seconds.items()}
    sgd, floors = best["SGD"], ours.floors(options.batch, rate)
    p, f, fi = (best[f"kinji, {kind}"] for kind in ("P", "F", "FI"))
    best["kinji, 10/100"] = (90 * p + 9 * f + fi) / 100
    best["kinji, adaptive"] = sum(seconds["kinji, adaptive"][1:]) / (ADAPTIVE_STEPS - 1)
    only_p, with_f = floors["preconditioning"], floors["preconditioning"] + floors["factor products"]
    least = {"kinji, P": only_p, "kinji, F": with_f, "kinji, FI": with_f + floors["inverses"]}
    least["kinji, 10/100"] = only_p + floors["factor products"] / 10 + floors["inverses"] / 100
    print(f"\n{options.network}, {options.pixels} px, batch {options.batch}, {options.threads} threads")
    print(f"product: {rate / 1e9:.0f} GFLOP/s\n{'':<24}{'seconds':>10}{'over SGD':>10}{'extra over floor':>18}")
    for name, value in best.items():
        over = f"{(value - sgd) / least[name]:>18.2f}" if name in least else ""
        print(f"{name:<24}{value:>10.3f}{value / sgd:>10.2f}{over}")
    print(f"\n{'part of FI':<24}{'seconds':>10}{'floor':>10}{'over floor':>12}")
    for part, values in ours.parts.seconds.items():
        floor = floors.get(part)
        over = "" if floor is None else f"{floor:>10.3f}{min(values) / floor:>12.2f}"
        print(f"{part:<24}{min(values):>10.3f}{over}")
    intervals = [clock.interval for clock in adaptive.clocks.values()]
    print(f"adaptive intervals after {ADAPTIVE_STEPS} steps: {min(intervals)} to {max(intervals)}")


if __name__ == "__main__":
    main()

"""Side by side: seconds of one training step of SGD, of K-FAC here, and of peers' K-FAC where they are installed.

``python benchmarks/kfac.py [--json FILE] [--network resnet50] [--pixels 64] [--batch 32] [--threads 2]``

"Refreshed" forms and inverts the Fisher blocks in every step, "reused" only preconditions. Peers run with their own
defaults, but the inverse in place of the eigenvalue form, and the empirical Fisher.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD

from kinji.kfac import KFAC

Step = Callable[[], object]
DAMPING = 1e-2


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


def sides(options: argparse.Namespace) -> Iterator[tuple[str, Step]]:
    """Yield what is timed, each on a network of its own."""
    torch.manual_seed(0)
    images = torch.randn(options.batch, 3, options.pixels, options.pixels)
    labels = torch.randint(0, 1000, (options.batch,))
    model = network(options)
    yield "SGD", plain_step(model, images, labels, SGD(model.parameters(), lr=1e-3, momentum=0.9))
    for name, interval in (("kinji, refreshed", 1), ("kinji, reused", 10**9)):
        model = network(options)
        yield name, plain_step(model, images, labels, KFAC(model, lr=1e-3, damping=DAMPING, refresh_interval=interval))
    for package, (name, peer) in PEERS.items():
        if importlib.util.find_spec(package):
            yield name, peer(network(options), images, labels)
        else:
            print(f"{name}: not installed, skipped")


def network(options: argparse.Namespace) -> nn.Module:
    """Return the network with fresh weights."""
    return torchvision.models.get_model(options.network, weights=None)


def measure(steps: dict[str, Step], repetitions: int) -> dict[str, list[float]]:
    """Return the seconds of each repetition of each side, interleaved, after one step of each to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repetition in range(-1, repetitions):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if repetition >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    """Print a table for people; write a list of measurements for machines."""
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
    seconds = measure(dict(sides(options)), options.repetitions)
    sgd = float(np.median(seconds["SGD"]))
    print(f"\n{options.network}, {options.pixels} px, batch {options.batch}, {options.threads} threads")
    print(f"{'':<28}{'seconds':>10}{'over SGD':>10}")
    rows = []
    for name, values in seconds.items():
        median = float(np.median(values))
        print(f"{name:<28}{median:>10.3f}{median / sgd:>10.1f}")
        rows.append({"name": f"{options.network}: {name}", "value": median, "unit": "s", "repetitions": values})
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

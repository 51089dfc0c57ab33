"""What each rank of the multi-rank tests of training does."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from kinji.kfac import Communicator, TorchCommunicator
from kinji.training import Checkpoints, Interrupted, Schedule, build_optimizer, synchronize_batch_norm, train

from .runs import images, weights_hash

STEPS, IMAGES, BATCH = 20, 60, 16  # the last batch of an epoch has 12 images
SIZES = (1, 2, 4)
KFAC = {"optimizer": "kfac", "damping": 0.1, "statistics_interval": "adaptive", "similarity": 0.5}
VARIANTS: tuple[dict[str, Any], ...] = (
    {"optimizer": "sgd"},
    KFAC,
    {"optimizer": "sgd", "images": 62, "frozen_batch_norm": True, "micro_batch": 2},  # parts that are not equally large
    {"optimizer": "kfac", "damping": 0.1, "frozen_batch_norm": True, "micro_batch": 4, "channels_last": True},
)
KEPT = ("sgd", "kfac")


def network() -> nn.Sequential:
    torch.manual_seed(2)
    layers = [nn.Conv2d(1, 6, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 2), nn.BatchNorm2d(4), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 10)).double()


def losses(communicator: Communicator | None, optimizer: str, images: int = IMAGES, **options: Any) -> list[float]:
    """Training and validation losses of the first steps, batch normalization synchronized or frozen."""
    _, readings = start(communicator, optimizer, images, synchronized=True, **options)
    return [loss for reading in readings for loss in (reading.training_loss, reading.validation_loss)]


def start(communicator, optimizer, count=IMAGES, synchronized=False, checkpoints=None, **options):
    model = network()
    if communicator and synchronized:
        synchronize_batch_norm(model, communicator)
    kfac = {name: options.pop(name) for name in KFAC if name in options}
    if optimizer == "kfac":
        kfac |= {"communicator": communicator}
    stepper = build_optimizer(optimizer, model, lr=0.05, momentum=0.9, **kfac)
    schedule = Schedule(peak_rate=0.05, peak_momentum=0.9, end_epoch=10)
    parts = {"training": images(count, seed=1), "validation": images(21, seed=2)}
    sizes = {"epochs": STEPS // 4, "batch_size": BATCH, "read_every": 1, "checkpoints": checkpoints}
    return model, train(model, stepper, schedule, **parts, **sizes, **options, communicator=communicator)


def resumed(communicator: Communicator, folder: Path, optimizer: str, damaged: bool) -> bool:
    """Whether ranks with running statistics of their own go on to the bit, if one has lost its newest checkpoint."""
    options = dict(KFAC) if optimizer == "kfac" else {"optimizer": optimizer}
    model, readings = start(communicator, **options)
    whole = list(readings)
    answers = iter([False] * 6 + [communicator.rank == 1])  # one of them is told
    checkpoints = Checkpoints(folder=folder, every_seconds=0, interrupted=lambda: next(answers))
    try:
        list(start(communicator, **options, checkpoints=checkpoints)[1])
    except Interrupted:
        if damaged and communicator.rank == 1:
            (folder / "000000007.rank1of2").write_bytes(b"")
        again, readings = start(communicator, **options, checkpoints=Checkpoints(folder=folder))
        return list(readings) == whole and weights_hash(again) == weights_hash(model)
    return False


def everything(communicator: Communicator, folder: Path) -> dict[str, Any]:
    """Results of every test on so many ranks."""
    results: dict[str, Any] = {"losses": [losses(communicator, **variant) for variant in VARIANTS]}
    if communicator.size == 2:
        results["resumed"] = [resumed(communicator, folder / name, name, name == "sgd") for name in KEPT]
    return results


def on_gloo(folder: Path) -> dict[int, dict[str, Any]]:
    """One of four ranks, in groups of 1, 2 and 4."""
    groups = {size: torch.distributed.new_group(list(range(size))) for size in SIZES}
    mine = [size for size in SIZES if torch.distributed.get_rank() < size]
    return {size: everything(TorchCommunicator(groups[size]), folder) for size in mine}

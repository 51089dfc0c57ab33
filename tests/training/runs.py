"""A short training run of every kind, and what is left of it."""

import hashlib
from typing import Any

import numpy as np
import torch
from torch import nn

from kinji.training import Checkpoints, Images, Reading, Schedule, build_optimizer, train

EPOCHS, BATCH, IMAGES = 4, 12, 60
STEPS = EPOCHS * IMAGES // BATCH
OPTIONS: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.9},
    "kfac": {
        "momentum": 0.9,
        "damping": 0.1,
        "statistics_interval": "adaptive",
        "similarity": 0.8,
        "fisher": "sampled",
    },
}


class Mixup:
    """Mixes each batch with the one before, as it was mixed."""

    def __init__(self):
        self.before = None

    def __call__(self, pixels_BCHW, labels_B, generator):
        targets_BK = nn.functional.one_hot(labels_B, 10).to(pixels_BCHW)
        share = torch.rand((), generator=generator, dtype=torch.float64).item()
        if self.before is not None:
            pixels_BCHW, targets_BK = (
                share * now + (1 - share) * before
                for now, before in zip((pixels_BCHW, targets_BK), self.before, strict=True)
            )
        self.before = (pixels_BCHW, targets_BK)
        return pixels_BCHW, targets_BK

    def state_dict(self):
        return {"before": self.before}

    def load_state_dict(self, state):
        self.before = state["before"]


def images(count: int, seed: int) -> Images:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(count, 1, 4, 4, generator=generator, dtype=torch.float64).float()
    return Images(pixels, torch.randint(10, (count,), generator=generator), np.arange(count))


def network() -> nn.Sequential:
    """With running statistics, chance of its own, and activations that half precision does not hold at first."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(16, 10)]
    nn.init.constant_(layers[1].weight, 20.0)
    return nn.Sequential(*layers)


def start(optimizer: str, checkpoints: Checkpoints | None = None, **options: Any):
    """Return the model and its readings to come."""
    model = options.pop("model", None) or network()
    stepper = build_optimizer(optimizer, model, lr=0.02, **OPTIONS[optimizer])
    schedule = Schedule(peak_rate=0.02, peak_momentum=0.9, end_epoch=EPOCHS)
    parts = {"training": images(IMAGES, seed=1), "validation": images(20, seed=2)}
    given = {"epochs": EPOCHS, "batch_size": BATCH, "read_every": 3, "seed": 5} | options
    return model, train(model, stepper, schedule, **parts, **given, checkpoints=checkpoints)


def run(optimizer: str, checkpoints: Checkpoints | None = None, **options: Any) -> tuple[str, list[Reading]]:
    """Return the hash of the weights and running statistics after the run, and its readings."""
    model, readings = start(optimizer, checkpoints, **options)
    return (list(readings), weights_hash(model))[::-1]


def weights_hash(model: nn.Module) -> str:
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())).hexdigest()

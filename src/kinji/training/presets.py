"""Published recipes that train ResNet-50 on ImageNet, by name.

- ``sp-ngd-<batch>``: Osawa et al. 2020 (arXiv 2002.06015), tables 1 and 2, sec. 6. Epochs are those of the table
  of 2019 (arXiv 1811.12019), of which the iterations agree, but for the largest batch, whose 873 iterations are 90
  epochs. No warm-up, weight decay or label smoothing.
- ``released-<batch>``: the configuration files of the code released with the paper of 2019 (chainerkfac 99e8839, which
  trains ResNet-50-D) and the defaults that they do not reach (``stab_coeff`` is 16, whatever they say).
- ``goyal-8192``: Goyal et al. 2017 (arXiv 1706.02677), sec. 5.1, as implementations of it agree. Their zero scale of
  the last normalization of each block is the model's to set.
- ``akiba-32768``: Akiba, Suzuki, Fukuda 2017 (arXiv 1711.04325): the schedule and constants as two implementations in
  Chainer agree. Its weight decay was not found and is 0 here; normalization without moving averages is not done.

The recipe of You et al. 2017 (LARS at batch 32,768) was not found and is not guessed; `kinji.training.optimizers.LARS`
is tuned like any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kinji.training.augmentation import BatchAugmentation, MixupRule
from kinji.training.schedules import MomentumCoupling, Schedule, linear_scaling

IMAGENET_IMAGES = 1_281_167


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A published recipe.

    Attributes
    ----------
    batch : int
        Images a step, over all ranks and accumulated parts.
    epochs : int
        Passes over the training images.
    optimizer : str
        A key of `kinji.training.optimizers.OPTIMIZERS`.
    schedule : Schedule
        Learning rate and momentum.
    options : mapping
        What the optimizer takes besides.
    mixup, mixup_rule, erasing
        As in `kinji.training.augmentation.BatchAugmentation`.
    label_smoothing : float
        As in `kinji.training.train`.
    """

    batch: int
    epochs: int
    optimizer: str
    schedule: Schedule
    options: Mapping[str, Any] = field(default_factory=dict)
    mixup: float = 0.0
    mixup_rule: MixupRule = "published"
    erasing: float = 0.0
    label_smoothing: float = 0.0

    def augmentation(self, classes: int) -> BatchAugmentation:
        """Return the augmentation of whole batches, with no memory yet."""
        return BatchAugmentation(
            classes=classes,
            mixup=self.mixup,
            mixup_rule=self.mixup_rule,
            erasing=self.erasing,
        )


class Row(NamedTuple):
    """A row of SP-NGD's table 2: alpha of mixup, p_decay, e_start, e_end, eta0, m0 and lambda of a batch."""

    batch: int
    epochs: int
    mixup: float
    power: float
    start_epoch: float
    end_epoch: float
    rate: float
    momentum: float
    damping: float

    def schedule(self, coupling: MomentumCoupling) -> Schedule:
        """Return the schedule of this row."""
        return Schedule(
            peak_rate=self.rate,
            peak_momentum=self.momentum,
            start_epoch=self.start_epoch,
            end_epoch=self.end_epoch,
            power=self.power,
            coupling=coupling,
        )


def natural_gradient(row: Row) -> Preset:
    """Return a row of the paper with the paper's rules."""
    return Preset(
        batch=row.batch,
        epochs=row.epochs,
        optimizer="kfac",
        schedule=row.schedule("proportional"),
        options={
            "damping": row.damping,
            "statistics_decay": 0.0,
            "statistics_interval": "adaptive",
            "similarity": 0.1,
            "normalization": "unit-wise",
            "momentum_rule": "published",
            "rescale_weights": "published",
        },
        mixup=row.mixup,
        erasing=0.5,
    )


def released(row: Row) -> Preset:
    """Return a configuration of the released code with the code's rules; its momentum follows the rate by itself."""
    return Preset(
        batch=row.batch,
        epochs=row.epochs,
        optimizer="kfac",
        schedule=row.schedule("constant"),
        options={
            "damping": row.damping,
            "statistics_decay": 0.0,
            "normalization": "full",
            "normalization_damping": 16.0,
            "momentum_rule": "released",
            "rescale_weights": "released",
            "ownership": "contiguous",
        },
        mixup=row.mixup,
        mixup_rule="released",
        erasing=0.5,
    )


PUBLISHED = [
    Row(4096, 35, 0.4, 11.0, 1.0, 53.0, 8.18e-3, 0.997, 2.5e-4),
    Row(8192, 35, 0.4, 8.0, 1.0, 53.5, 1.25e-2, 0.993, 2.5e-4),
    Row(16384, 35, 0.4, 8.0, 1.0, 53.5, 2.5e-2, 0.985, 2.5e-4),
    Row(32768, 45, 0.6, 3.5, 1.5, 49.5, 3.0e-2, 0.97, 2.0e-4),
    Row(65536, 60, 0.6, 2.9, 2.0, 64.5, 4.0e-2, 0.95, 1.5e-4),
    Row(131072, 90, 1.0, 2.9, 3.0, 100.0, 7.0e-2, 0.93, 1.0e-4),
]
RELEASED = [
    Row(4096, 36, 0.4, 11.0, 1.0, 53.0, 8.18e-3, 0.997, 2.5e-4),
    Row(8192, 36, 0.4, 8.0, 1.0, 53.5, 1.25e-2, 0.993, 2.5e-4),
    Row(16384, 36, 0.4, 8.0, 1.0, 53.5, 2.5e-2, 0.985, 2.5e-4),
    Row(32768, 46, 0.6, 3.5, 1.5, 49.5, 3.0e-2, 0.97, 2.0e-4),
    Row(65536, 61, 0.6, 2.9, 2.0, 64.5, 4.0e-2, 0.95, 1.5e-4),
    Row(131072, 81, 1.0, 3.0, 1.0, 95.0, 7.0e-2, 0.93, 1.0e-4),
]

GOYAL = Preset(
    batch=8192,
    epochs=90,
    optimizer="sgd",
    schedule=Schedule(
        peak_rate=linear_scaling(0.1, 8192),
        peak_momentum=0.9,
        warmup_epochs=5,
        warmup_rate=0.1,
        start_epoch=5,
        end_epoch=90,
        steps=((30, 0.1), (60, 0.01), (80, 0.001)),
    ),
    options={"weight_decay": 1e-4, "nesterov": True},
)

AKIBA = Preset(
    batch=32768,
    epochs=90,
    optimizer="rmsprop-sgd",
    schedule=Schedule(
        peak_rate=linear_scaling(0.1, 32768),
        peak_momentum=0.9,
        end_epoch=90,
        steps=((0, 0.5), (40, 0.075), (70, 0.01), (85, 0.001)),
    ),
    options={
        "rmsprop_lr": 3e-4,
        "second": 0.99,
        "eps": 1e-8,
        "center": 10.0,
        "period": 5.0,
        "steps_per_epoch": IMAGENET_IMAGES // 32768,
    },
)

PRESETS: dict[str, Preset] = {
    **{f"sp-ngd-{row.batch}": natural_gradient(row) for row in PUBLISHED},
    **{f"released-{row.batch}": released(row) for row in RELEASED},
    "goyal-8192": GOYAL,
    "akiba-32768": AKIBA,
}

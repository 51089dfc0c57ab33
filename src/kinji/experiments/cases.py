"""The parameters of one case of each experiment.

The command line and the schema of config/*.yaml are generated from these classes, so they import nothing heavy.
Scalar parameters name a case and its record; a tuple is a sweep inside one process.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, Protocol


class Case(Protocol):
    """What every case class offers: its experiment and the packages of kinji whose source its records depend on."""

    experiment: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]
    __dataclass_fields__: ClassVar[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Int8DgemmCase:
    """FP64 products on the INT8 unit, by both Ozaki schemes, beside native DGEMM.

    No repetitions, no timing; no energy seconds, no energy; no conditions, no factorization. Without accuracy neither
    errors nor bits are judged: then nothing but a timed GPU is kept waiting.
    """

    experiment: ClassVar[str] = "int8_dgemm"
    packages: ClassVar[tuple[str, ...]] = ("gemm",)

    n: int
    slices: tuple[int, ...] = (3, 4, 5, 6, 7, 8, 9, 10, 11, 12)
    moduli: tuple[int, ...] = (8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 20)
    phi: tuple[float, ...] = (0.1, 0.5, 1.0, 2.0, 4.0)
    timed_slices: tuple[int, ...] = (8, 9)
    timed_moduli: tuple[int, ...] = (14, 15)
    repetitions: int = 3
    energy_seconds: float = 0.0
    conditions: tuple[float, ...] = ()
    accuracy: bool = True
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class H2ScalingCase:
    """H²-ULV against LORAPO on one kernel matrix.

    With tile 0 LORAPO, which is O(N²), is left out, and `tolerance` is the residual that iterations go to. What is an
    empty tuple is left out: the fill-in ablation, sweeps of theta and of the diagonal (in multiples of the natural
    one), HSS, H² and H²-ULV at some accuracies, strong scaling over workers; and with structure_leaf 0 the blocks of
    all formats, which take O(N³).
    """

    experiment: ClassVar[str] = "h2_scaling"
    packages: ClassVar[tuple[str, ...]] = ("hmatrix", "experiments/int8_dgemm/threads")

    n: int
    diagonal: Literal["dominant", "natural"]
    theta: float = 2.0
    leaf: int = 256
    rank: int = 100
    samples: int = 2000
    tile: int = 512
    tolerance: float = 1e-6
    geometry: Literal["sphere", "cube_surface", "molecule", "uniform_cube"] = "sphere"
    ablation_ranks: tuple[int, ...] = ()
    sweep_thetas: tuple[float, ...] = ()
    sweep_diagonals: tuple[float, ...] = ()
    rank_tolerances: tuple[float, ...] = ()
    workers: tuple[int, ...] = ()
    structure_leaf: int = 0
    repetitions: int = 3
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class StepBreakdownCase:
    """One training step of SGD and of K-FAC on some ranks, split into the seven published parts.

    K-FAC is measured for each Fisher matrix with each kind of BatchNorm, with fresh and with stale statistics. Steps of
    the predicted networks on the ranks are also modelled, from the network's step on one rank. A trace is a file for
    Perfetto. Transformers count tokens instead of pixels. With a fabric (abci, ethernet) the step is not measured but
    modelled there, on 1 to 2,048 GPUs.
    """

    experiment: ClassVar[str] = "step_breakdown"
    packages: ClassVar[tuple[str, ...]] = ("kfac", "training/models", "cost", "experiments/ranks")

    network: Literal["resnet18", "resnet50", "bert-base-block", "bert-large-block"] = "resnet50"
    ranks: int = 2
    fabric: str | None = None
    fishers: tuple[Literal["empirical", "sampled"], ...] = ("empirical",)
    batch_norms: tuple[Literal["unit-wise", "full"], ...] = ("unit-wise",)
    predicted: tuple[Literal["resnet18", "resnet50", "bert-base-block", "bert-large-block"], ...] = ()
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    pixels: int = 64
    tokens: int = 128
    batch_per_rank: int = 16
    repetitions: int = 3
    trace: str | None = None
    seed: int = 0


Optimizer = Literal["sgd", "lars", "rmsprop-sgd", "adam", "adamw", "kfac"]


@dataclass(frozen=True, kw_only=True)
class Resnet50TableCase:
    """Epochs, iterations and accuracy of one optimizer at one batch size, over folds of the images.

    A preset is a published recipe (kinji.training.presets), whose optimizer, batch, epochs, rate, momentum and damping
    the case repeats. Fisher matrix, batch_norm, statistics, rescaling and momentum_rule are K-FAC's.
    """

    experiment: ClassVar[str] = "resnet50_table"
    packages: ClassVar[tuple[str, ...]] = ("kfac", "training")

    optimizer: Optimizer
    batch: int
    epochs: int
    lr: float
    momentum: float
    damping: float | None = None
    weight_decay: float = 0.0
    warmup_epochs: float = 0.0
    preset: str | None = None
    fisher: Literal["empirical", "sampled"] = "empirical"
    batch_norm: Literal["unit-wise", "full"] = "unit-wise"
    statistics: Literal["fresh", "adaptive"] = "fresh"
    rescaling: Literal["none", "published", "released"] = "none"
    momentum_rule: Literal["published", "released"] = "published"
    target_accuracy: float = 0.96
    target_loss: float = 0.65
    training_images: int = 1024
    held_out_images: int = 2000
    folds: int = 5
    ranks: int = 1
    seed: int = 0
    images: Literal["digits", "procedural", "imagenet"] = "digits"
    pixels: int = 32
    network: Literal["small", "resnet20", "resnet18", "resnet50"] = "small"
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    micro_batch: int | None = None
    data_path: str | None = None


@dataclass(frozen=True, kw_only=True)
class Resnet50TuneCase:
    """Every combination of a grid of hyperparameters for one row of the table, on splits of their own."""

    experiment: ClassVar[str] = "resnet50_tune"
    packages: ClassVar[tuple[str, ...]] = ("kfac", "training", "experiments/resnet50_table")

    optimizer: Optimizer
    batch: int
    epochs: int
    lr: tuple[float, ...]
    momentum: tuple[float, ...]
    damping: tuple[float, ...] = ()
    weight_decay: float = 0.0
    warmup_epochs: float = 0.0
    target_accuracy: float = 0.96
    target_loss: float = 0.65
    training_images: int = 1024
    held_out_images: int = 2000
    images: Literal["digits", "procedural"] = "digits"
    pixels: int = 32
    network: Literal["small", "resnet20", "resnet18", "resnet50"] = "small"
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    micro_batch: int | None = None
    splits: tuple[int, ...] = (0, 1, 2, 3)
    seed: int = 1000


@dataclass(frozen=True, kw_only=True)
class ImagenetRaceCase:
    """The race to train ResNet-50 on ImageNet: steps modelled on a fabric, and those that step_breakdown measured."""

    experiment: ClassVar[str] = "imagenet_race"
    packages: ClassVar[tuple[str, ...]] = ("cost", "kfac/ownership")

    fabric: str = "abci"
    batch_per_gpu: int = 32
    pixels: int = 224


CASES: dict[str, type[Case]] = {
    case.experiment: case
    for case in (
        Int8DgemmCase,
        H2ScalingCase,
        Resnet50TableCase,
        Resnet50TuneCase,
        StepBreakdownCase,
        ImagenetRaceCase,
    )
}
TUNINGS = tuple(name for name in CASES if name.endswith("_tune"))
EXPERIMENTS = tuple(name for name in CASES if name not in TUNINGS)
LAUNCHED = ("resnet50_table",)
"""Experiments whose ranks torchrun or srun starts; others start theirs, on one node."""


def sources(experiment: str) -> tuple[str, ...]:
    """Return the packages and modules of kinji that a record of `experiment` depends on."""
    return (*CASES[experiment].packages, f"experiments/{experiment}", "experiments/context")


def launched_ranks(case: Case, started: int = 1) -> int:
    """Return how many processes have to be started for `case`; one that starts its ranks itself may find them there."""
    return getattr(case, "ranks", 1) if case.experiment in LAUNCHED or started > 1 else 1


def case_name(parameters: dict[str, Any]) -> str:
    """Name a case by its scalar parameters, in the order given: ``n~1024_diagonal~natural``, without slashes."""
    scalars = {k: v for k, v in parameters.items() if not isinstance(v, (list, tuple))}
    return "_".join(f"{k}~{v}" for k, v in scalars.items()).replace("/", "-") or "default"


def as_parameters(case: Case) -> dict[str, Any]:
    """Return every parameter of `case`, tuples as lists as JSON has them."""
    values = {field.name: getattr(case, field.name) for field in fields(case)}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

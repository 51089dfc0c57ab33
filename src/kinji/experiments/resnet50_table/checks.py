"""Whether the options of a case go together."""

from __future__ import annotations

from dataclasses import fields

from kinji.errors import KinjiError
from kinji.experiments.cases import Resnet50TableCase
from kinji.training import PRESETS

OF_KFAC = ("fisher", "batch_norm", "statistics", "rescaling", "momentum_rule")
BEYOND_PRESET = (*OF_KFAC, "weight_decay", "warmup_epochs")


def check(case: Resnet50TableCase) -> None:
    """Raise `KinjiError` if the case cannot be run."""
    if case.images == "imagenet" and case.data_path is None:
        raise KinjiError(
            "resnet50_table on ImageNet needs its folder: set `data_path` of the case in config/<scale>.yaml "
            "(--data-path by hand)."
        )
    if (case.optimizer == "kfac") != (case.damping is not None):
        raise KinjiError(
            "resnet50_table: `damping` belongs to the optimizer kfac, which needs it, and to no other; "
            f"got optimizer {case.optimizer} and damping {case.damping}."
        )
    if case.optimizer != "kfac" and (changed := _changed(case, OF_KFAC)):
        raise KinjiError(f"resnet50_table: {changed} belong to the optimizer kfac, not to {case.optimizer}.")
    if case.preset is not None:
        _check_preset(case, case.preset)


def _check_preset(case: Resnet50TableCase, name: str) -> None:
    if name not in PRESETS:
        raise KinjiError(f"resnet50_table: unknown preset {name!r}; known: {', '.join(PRESETS)}.")
    if changed := _changed(case, BEYOND_PRESET):
        raise KinjiError(f"resnet50_table: the preset {name} sets {changed}; leave them out.")
    preset = PRESETS[name]
    schedule = preset.schedule
    published = {"optimizer": preset.optimizer, "batch": preset.batch, "epochs": preset.epochs}
    published |= {"lr": schedule.peak_rate, "momentum": schedule.peak_momentum}
    published |= {"damping": preset.options.get("damping")}
    wrong = {key: value for key, value in published.items() if getattr(case, key) != value}
    if wrong:
        raise KinjiError(f"resnet50_table: the preset {name} has {wrong}; set the case alike, or drop `preset`.")


def _changed(case: Resnet50TableCase, names: tuple[str, ...]) -> str:
    defaults = {field.name: field.default for field in fields(case)}
    return ", ".join(f"`{name}`" for name in names if getattr(case, name) != defaults[name])

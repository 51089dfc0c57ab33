"""Options of the optimizer: which values are refused, and how parameters fall into groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from torch.nn import Parameter

from kinji.kfac.fisher import FisherKind, Likelihood
from kinji.kfac.update import MomentumRule, RescalingRule

CHOICES = {
    "fisher": FisherKind,
    "likelihood": Likelihood,
    "momentum_rule": MomentumRule,
    "rescale_weights": RescalingRule,
}


def refuse_group(group: Mapping[str, Any]) -> None:
    """Raise ValueError if an entry of a parameter group is out of range."""
    allowed = {
        "lr": ("must be >= 0", group["lr"] >= 0),
        "momentum": ("must be in [0, 1)", 0 <= group["momentum"] < 1),
        "damping": ("must be >= 0", group["damping"] >= 0),
        "weight_decay": ("must be >= 0", group["weight_decay"] >= 0),
        "statistics_decay": ("must be in [0, 1)", 0 <= group["statistics_decay"] < 1),
    }
    _refuse([f"{name}={group[name]}: {message}" for name, (message, holds) in allowed.items() if not holds])


def refuse_choices(chosen: Mapping[str, Any]) -> None:
    """Raise ValueError if an option that holds for all parameters is out of range."""
    interval = chosen["statistics_interval"]
    refused = [
        f"{name}={chosen[name]!r}: must be one of {', '.join(get_args(choices))}"
        for name, choices in CHOICES.items()
        if chosen[name] not in get_args(choices)
    ]
    if interval != "adaptive" and not (isinstance(interval, int) and interval >= 1):
        refused.append(f"statistics_interval={interval!r}: must be 'adaptive' or >= 1")
    for name in ("inverse_interval", "accumulation_steps"):
        if chosen[name] < 1:
            refused.append(f"{name}={chosen[name]}: must be >= 1")
    _refuse(refused)


def grouped_parameters(parameters: Sequence[Parameter], groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return groups in the form of torch's optimizers; parameters in none of those given make the first."""
    given = [{**group, "params": list(group["params"])} for group in groups]
    named = {parameter for group in given for parameter in group["params"]}
    if named - set(parameters):
        raise ValueError("param_groups hold a parameter that is not trained or not of the model")
    rest = [parameter for parameter in parameters if parameter not in named]
    return [{"params": rest}, *given] if rest else given


def _refuse(messages: Sequence[str]) -> None:
    if messages:
        raise ValueError("; ".join(messages))

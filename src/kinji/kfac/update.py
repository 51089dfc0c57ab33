"""What a step does with a direction: momentum, weight decay, and the norm of a layer's weight.

Both rules of the paper and of the code released with it are here, under the names ``published`` and ``released``. The
paper's momentum that falls with the learning rate, m = (m0 / eta0) eta, is the schedule's to set.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

MomentumRule = Literal["published", "released"]
RescalingRule = Literal["none", "published", "released"]


def velocities(
    parameters: list[Tensor],
    directions: list[Tensor],
    previous: list[Tensor],
    group: Mapping[str, Any],
    rule: MomentumRule,
) -> None:
    """Turn directions into changes of parameters: ``-lr (direction + weight_decay w) + momentum v``.

    ``published``: v is the previous change, none in the first step. ``released``: v is scaled by the ratio of this
    learning rate to the previous one as well (momentum correction, Goyal et al. 2017).
    """
    if group["weight_decay"] > 0:
        torch._foreach_add_(directions, parameters, alpha=group["weight_decay"])
    torch._foreach_mul_(directions, -group["lr"])
    if previous and group["momentum"] > 0:
        corrected = rule == "released" and group["previous_lr"] > 0
        ratio = group["lr"] / group["previous_lr"] if corrected else 1.0
        torch._foreach_add_(directions, previous, alpha=group["momentum"] * ratio)


def rescaled(weight: Tensor, rule: RescalingRule) -> Tensor:
    """Scale a layer's weight with d_out outputs to the norm sqrt(2 d_out); ``released``: only if that shrinks it."""
    scale = (2 * len(weight)) ** 0.5 / (weight.norm() + 1e-9)
    return weight * (scale.clamp_max(1.0) if rule == "released" else scale)

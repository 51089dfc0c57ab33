"""What a step does with a direction: momentum, weight decay, and the norm of a layer's weight.

Both rules of the paper and of the code released with it are here, under the names ``published`` and ``released``. The
paper's momentum that falls with the learning rate, m = (m0 / eta0) eta, is the schedule's to set.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

MomentumRule = Literal["published", "released"]
RescalingRule = Literal["none", "published", "released"]


def velocity(
    parameter: Tensor, direction: Tensor, previous: Tensor | None, group: Mapping[str, Any], rule: MomentumRule
) -> Tensor:
    """Return the change of a parameter: ``-lr (direction + weight_decay w) + momentum v``, in the direction's memory.

    ``published``: v is the previous change. ``released``: v is scaled by the ratio of this learning rate to the
    previous one as well (momentum correction, Goyal et al. 2017).
    """
    change = direction.add_(parameter, alpha=group["weight_decay"]).mul_(-group["lr"])
    if previous is None or group["momentum"] == 0:
        return change
    corrected = rule == "released" and group["previous_lr"] > 0
    ratio = group["lr"] / group["previous_lr"] if corrected else 1.0
    return change.add_(previous, alpha=group["momentum"] * ratio)


def rescaled(weight: Tensor, rule: RescalingRule) -> Tensor:
    """Scale a layer's weight with d_out outputs to the norm sqrt(2 d_out); ``released``: only if that shrinks it."""
    scale = (2 * len(weight)) ** 0.5 / (weight.norm() + 1e-9)
    return weight * (scale.clamp_max(1.0) if rule == "released" else scale)

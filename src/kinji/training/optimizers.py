"""The optimizers that are compared, by name.

A training loop may set ``lr`` and ``momentum`` of every parameter group before each step. All but Adam and AdamW, whose
first moment keeps the momentum it was built with, follow both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import SGD, Adam, AdamW, Optimizer

from kinji.kfac import KFAC


def momentum_sgd(
    model: nn.Module, *, lr: float, momentum: float, weight_decay: float = 0.0, nesterov: bool = False
) -> Optimizer:
    """Return v <- m v + g', w <- w - eta v with g' = g + d w; with Nesterov's momentum, w <- w - eta (m v + g')."""
    return SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)


def adam(model: nn.Module, *, lr: float, momentum: float = 0.9, second: float = 0.999, eps: float = 1e-8) -> Optimizer:
    """Return Adam (Kingma, Ba 2015); `momentum` and `second` are its beta_1 and beta_2."""
    return Adam(model.parameters(), lr=lr, betas=(momentum, second), eps=eps)


def adamw(
    model: nn.Module,
    *,
    lr: float,
    momentum: float = 0.9,
    second: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> Optimizer:
    """Return Adam with decoupled weight decay (Loshchilov, Hutter 2019)."""
    return AdamW(model.parameters(), lr=lr, betas=(momentum, second), eps=eps, weight_decay=weight_decay)


class FirstOrder(Optimizer):
    """An optimizer whose step treats each parameter for itself, by `update`."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update each parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.update(parameter, parameter.grad, self.state[parameter], group)
        return loss

    def update(self, w: Parameter, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        """Change one parameter in place, from its gradient."""
        raise NotImplementedError


class LARS(FirstOrder):
    """Layer-wise adaptive rates (You, Gitman, Ginsburg 2017, "Large batch training of convolutional networks", alg. 1).

    ``v <- m v + eta lambda (g + d w)``, ``w <- w - v`` with ``lambda = trust |w| / (|g| + d |w|)``. Vectors (biases,
    scales and shifts of normalizations) take ``lambda = 1`` and ``d = 0``, and so does a parameter of norm zero or
    with a gradient of norm zero, but for its decay.

    Parameters
    ----------
    model : torch.nn.Module
        Its parameters are trained.
    lr, momentum, weight_decay : float
        eta, m and d.
    trust : float
        The trust coefficient.
    """

    def __init__(
        self, model: nn.Module, *, lr: float, momentum: float, weight_decay: float = 0.0, trust: float = 1e-3
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust}
        super().__init__(model.parameters(), defaults)

    def update(self, w: Parameter, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        """Change one parameter in place, from its gradient."""
        decay = group["weight_decay"] if w.dim() > 1 else 0.0
        rate = group["lr"] * (self.ratio(w, g, decay, group["trust"]) if w.dim() > 1 else 1.0)
        v = state.setdefault("velocity", torch.zeros_like(w))
        v.mul_(group["momentum"]).add_((g + decay * w) * rate)
        w.sub_(v)

    @staticmethod
    def ratio(w: Tensor, g: Tensor, decay: float, trust: float) -> Tensor:
        """Return lambda, on the device of the parameter."""
        size, slope = w.norm(), g.norm()
        return torch.where((size > 0) & (slope > 0), trust * size / (slope + decay * size), torch.ones_like(size))


class RMSpropWarmup(FirstOrder):
    """RMSprop that turns into momentum SGD (Akiba, Suzuki, Fukuda 2017, "Extremely large minibatch SGD", sec. 3.1).

    ``s <- mu s + (1 - mu) g^2``, ``v <- m v - (a + b / (sqrt(s) + eps)) g``, ``w <- w + eta v``, where the share of SGD
    ``a`` rises from exponentially small to 1 around the epoch `center`, see `sgd_share`, and
    ``b = (1 - a) rmsprop_lr / eta``. Weight decay is added to the gradient.

    Parameters
    ----------
    model : torch.nn.Module
        Its parameters are trained.
    lr, momentum, weight_decay : float
        eta, m and the decay.
    steps_per_epoch : int
        The optimizer counts its own steps.
    rmsprop_lr, second, eps : float
        Learning rate of RMSprop, ``mu``, and what keeps the root from zero.
    center, period : float
        Epochs: when, and how fast.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float,
        momentum: float,
        steps_per_epoch: int,
        weight_decay: float = 0.0,
        rmsprop_lr: float = 3e-4,
        second: float = 0.99,
        eps: float = 1e-8,
        center: float = 10.0,
        period: float = 5.0,
    ) -> None:
        if steps_per_epoch < 1:
            raise ValueError(f"steps_per_epoch must be positive, got {steps_per_epoch}")
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "rmsprop_lr": rmsprop_lr}
        defaults |= {"second": second, "eps": eps, "center": center, "period": period}
        super().__init__(model.parameters(), {**defaults, "steps_per_epoch": steps_per_epoch})

    def update(self, w: Parameter, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        """Change one parameter in place, from its gradient."""
        g = g + group["weight_decay"] * w
        square, v = (state.setdefault(name, torch.zeros_like(w)) for name in ("square", "velocity"))
        share = sgd_share(state.get("steps", 0) / group["steps_per_epoch"], group["center"], group["period"])
        state["steps"] = state.get("steps", 0) + 1
        square.mul_(group["second"]).addcmul_(g, g, value=1 - group["second"])
        v.mul_(group["momentum"]).sub_(share * g)
        if share < 1:  # lr may be zero at the end of a schedule
            v.addcdiv_(g, square.sqrt().add_(group["eps"]), value=-(1 - share) * group["rmsprop_lr"] / group["lr"])
        w.add_(v, alpha=group["lr"])


def sgd_share(epoch: float, center: float, period: float) -> float:
    """Return the share of SGD: an exponential up to one half at the center, then its tangent up to one."""
    if epoch < center:
        return 0.5 * math.exp(2 * (epoch - center) / period)
    return min(1.0, 0.5 + (epoch - center) / period)


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": momentum_sgd,
    "lars": LARS,
    "rmsprop-sgd": RMSpropWarmup,
    "adam": adam,
    "adamw": adamw,
    "kfac": KFAC,
}


def build_optimizer(name: str, model: nn.Module, **options: Any) -> Optimizer:
    """Return an optimizer of `model` by its name.

    Parameters
    ----------
    name : str
        A key of `OPTIMIZERS`.
    model : torch.nn.Module
        The model to train.
    **options
        Hyperparameters of that optimizer.

    Raises
    ------
    ValueError
        If there is no optimizer of that name.
    TypeError
        If the optimizer has no such hyperparameter.
    """
    if name not in OPTIMIZERS:
        nearest = get_close_matches(name, OPTIMIZERS, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown optimizer {name!r}; did you mean {nearest!r}? Known: {sorted(OPTIMIZERS)}")
    return OPTIMIZERS[name](model, **options)

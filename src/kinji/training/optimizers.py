"""The optimizers that are compared, by name."""

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from torch import nn
from torch.optim import SGD, Optimizer

from kinji.kfac import KFAC


def momentum_sgd(model: nn.Module, *, lr: float, momentum: float, weight_decay: float = 0.0) -> Optimizer:
    """Return v <- m v + g + d w, w <- w - eta v for every parameter w with gradient g."""
    return SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"sgd": momentum_sgd, "kfac": KFAC}


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

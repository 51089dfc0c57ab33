"""Whose gradients the Fisher matrix is made of.

``empirical``: those of the loss itself, at the true labels; no extra work. ``sampled``: those at one label drawn from
the model for each example ("1mc" in the paper), one more backward pass, down to the layers' outputs alone. ``exact``:
the expectation over the model's labels, as many of those passes as the model has outputs. The model's distribution is
``categorical`` (softmax; the loss is cross-entropy) or ``normal`` (unit variance; the loss is half the squared error,
summed over outputs).

Dimension letters: m examples, k outputs (classes); ... positions, which count as examples of the mean loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

FisherKind = Literal["empirical", "sampled", "exact"]
Likelihood = Literal["categorical", "normal"]


def output_gradients(output: Tensor, kind: FisherKind, likelihood: Likelihood) -> Iterator[Tensor]:
    """Yield gradients of the mean loss by the output whose second moments add up to those wanted.

    Parameters
    ----------
    output : (m, ..., k)
        What the model returned: logits, or means.
    kind
        ``sampled`` yields one gradient, by torch's own random numbers; ``exact`` yields k of them, for (m, k) alone.

    Raises
    ------
    ValueError
        The exact Fisher matrix is wanted of an output with positions, whose labels have too many combinations.
    """
    output = output.detach()
    rows = output.numel() // output.shape[-1]
    if kind == "sampled":
        yield (_sampled_categorical(output) if likelihood == "categorical" else torch.randn_like(output)) / rows
    elif output.ndim != 2:
        raise ValueError(f"the exact Fisher matrix needs an output (examples, classes), not {tuple(output.shape)}")
    else:
        expected = _each_category if likelihood == "categorical" else _each_coordinate
        yield from (gradient / rows for gradient in expected(output))


def _sampled_categorical(logits: Tensor) -> Tensor:
    probabilities = logits.float().softmax(-1) if logits.dtype.itemsize < 4 else logits.softmax(-1)
    labels = torch.multinomial(probabilities.flatten(0, -2), 1).view(*logits.shape[:-1], 1)
    return probabilities.scatter_add(-1, labels, -torch.ones_like(probabilities[..., :1])).to(logits.dtype)


def _each_category(logits_mk: Tensor) -> Iterator[Tensor]:
    probabilities_mk = logits_mk.softmax(-1)
    for category in range(logits_mk.shape[1]):
        gradient_mk = probabilities_mk.clone()
        gradient_mk[:, category] -= 1
        yield gradient_mk * probabilities_mk[:, category, None].sqrt()


def _each_coordinate(means_mk: Tensor) -> Iterator[Tensor]:
    for coordinate in range(means_mk.shape[1]):
        gradient_mk = torch.zeros_like(means_mk)
        gradient_mk[:, coordinate] = 1
        yield gradient_mk

"""One training run: the same loop for every optimizer, reproducible to the bit on one thread.

Dimension letters: N images, C channels, H height, W width, B images of a batch, K classes.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from kinji.training.data import Images
from kinji.training.schedules import Schedule


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a run shows of itself from time to time.

    Attributes
    ----------
    epoch : float
        Passes over the training part so far.
    iteration : int
        Optimizer steps so far.
    training_loss : float
        Mean over the batches since the last reading, each before the step on it.
    validation_loss : float
        The training objective (label smoothing included) on the validation part.
    validation_accuracy : float
        Share of the validation part that is classified correctly.
    """

    epoch: float
    iteration: int
    training_loss: float
    validation_loss: float
    validation_accuracy: float


def train(
    model: nn.Module,
    optimizer: Optimizer,
    schedule: Schedule,
    *,
    training: Images,
    validation: Images,
    epochs: int,
    batch_size: int,
    read_every: int | None = None,
    label_smoothing: float = 0.1,
    seed: int = 0,
) -> Iterator[Reading]:
    """Train a model in place, handing out readings on the way.

    Parameters
    ----------
    model : torch.nn.Module
        Maps pixels_BCHW to logits_BK.
    optimizer : torch.optim.Optimizer
        Its learning rate and momentum are set from `schedule` before each step.
    schedule : Schedule
        Read in the middle of a step, so that neither the first step of a warm-up nor the last of a decay is lost.
    training, validation : Images
        Parts of a fold.
    epochs : int
        Passes over the training part, each in a new random order.
    batch_size : int
        Images a step; the last step of an epoch takes what is left.
    read_every : int, optional
        Steps between two readings, an epoch's if None; there is one after the last step in any case.
    label_smoothing : float
        Weight of the uniform distribution in the targets of the loss.
    seed : int
        Fixes the order of the images.

    Yields
    ------
    Reading
        With the model as it is at that moment.

    Raises
    ------
    ValueError
        If the batch size does not lie within 1..N, or `read_every` is not positive.
    FloatingPointError
        If the loss stops being finite.
    """
    if not 1 <= batch_size <= len(training):
        raise ValueError(f"batch_size must lie in 1..{len(training)} (the training images), got {batch_size}")
    if read_every is not None and read_every < 1:
        raise ValueError(f"read_every must be a positive number of steps, got {read_every}")
    order = torch.Generator().manual_seed(seed)
    steps = -(-len(training) // batch_size)
    batches = (b for _ in range(epochs) for b in torch.randperm(len(training), generator=order).split(batch_size))
    losses: list[float] = []
    for iteration, batch_B in enumerate(batches, start=1):
        set_rates(optimizer, schedule, (iteration - 0.5) / steps)
        model.train()
        logits_BK = model(training.pixels_NCHW[batch_B])
        loss = cross_entropy(logits_BK, training.labels_N[batch_B], label_smoothing=label_smoothing)
        losses.append(checked(loss, iteration / steps, optimizer))
        descend(optimizer, loss)
        if iteration % (read_every or steps) == 0 or iteration == epochs * steps:
            validation_loss, correct = evaluate(model, validation, label_smoothing=label_smoothing)
            yield Reading(
                epoch=iteration / steps,
                iteration=iteration,
                training_loss=sum(losses) / len(losses),
                validation_loss=validation_loss,
                validation_accuracy=correct / len(validation),
            )
            losses.clear()


def set_rates(optimizer: Optimizer, schedule: Schedule, epoch: float) -> None:
    """Set the learning rate and the momentum of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = schedule.rate(epoch)
        group["momentum"] = schedule.momentum(epoch)


def checked(loss: Tensor, epoch: float, optimizer: Optimizer) -> float:
    """Return the loss as a number, or raise FloatingPointError if it is none."""
    if not loss.isfinite():
        rate = optimizer.param_groups[0]["lr"]
        raise FloatingPointError(
            f"the training loss became {loss.item()} in epoch {math.ceil(epoch)}: "
            f"lower the learning rate (now {rate:.3g}), lengthen the warm-up, or (K-FAC) raise the damping"
        )
    return loss.item()


def descend(optimizer: Optimizer, loss: Tensor) -> None:
    """Take one step of the optimizer along the gradient of the loss."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@torch.no_grad()
def evaluate(model: nn.Module, images: Images, *, label_smoothing: float = 0.0) -> tuple[float, int]:
    """Return the mean loss and the number of correctly classified images, with running BatchNorm statistics."""
    model.eval()
    logits_NK = model(images.pixels_NCHW)
    loss = cross_entropy(logits_NK, images.labels_N, label_smoothing=label_smoothing)
    return loss.item(), int((logits_NK.argmax(dim=1) == images.labels_N).sum())

"""One training run: the same loop for every optimizer, reproducible to the bit on one thread, interrupted or not.

Dimension letters: N images, C channels, H height, W width, B images of a batch, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from kinji.kfac import Communicator
from kinji.training.batch_norm import average_running_statistics
from kinji.training.checkpoint import Checkpoints
from kinji.training.plan import Plan
from kinji.training.ranks import Ranks
from kinji.training.schedules import Schedule
from kinji.training.source import Augmentation, ImageSource
from kinji.training.state import Keeper, Progress, Reading, RunState, Step
from kinji.training.step import Stepper

EVALUATION_BATCH = 1024


def train(
    model: nn.Module,
    optimizer: Optimizer,
    schedule: Schedule,
    *,
    training: ImageSource,
    validation: ImageSource,
    epochs: int,
    batch_size: int,
    read_every: int | None = None,
    label_smoothing: float = 0.1,
    seed: int = 0,
    augmentation: Augmentation | None = None,
    communicator: Communicator | None = None,
    micro_batch: int | None = None,
    precision: torch.dtype | None = None,
    channels_last: bool = False,
    frozen_batch_norm: bool = False,
    checkpoints: Checkpoints | None = None,
    watch: Callable[[Step], None] = lambda step: None,
) -> Iterator[Reading]:
    """Train a model in place, handing out readings on the way.

    Parameters
    ----------
    model : torch.nn.Module
        Maps pixels_BCHW to logits_BK; images are brought to the device and type of its parameters.
    optimizer : torch.optim.Optimizer
        Its learning rate and momentum are set from `schedule` before each step.
    schedule : Schedule
        Read in the middle of a step, so that neither the first step of a warm-up nor the last of a decay is lost.
    training, validation : ImageSource
        Parts of a fold.
    epochs : int
        Passes over the training part, each in a new random order.
    batch_size : int
        Images a step, on all ranks; the last step of an epoch takes what is left.
    read_every : int, optional
        Steps between two readings, an epoch's if None; there is one after the last step in any case.
    label_smoothing : float
        Weight of the uniform distribution in the targets of the loss.
    seed : int
        Fixes the order of the images, and what `augmentation` draws.
    augmentation : Augmentation, optional
        Changes the (micro-)batches that are trained on.
    communicator : Communicator, optional
        How ranks talk, the same that K-FAC was given; each trains on its part of a batch, from equal weights. Batch
        normalizations use the part's own statistics, unless frozen or synchronized (`synchronize_batch_norm`).
    micro_batch : int, optional
        Images that a rank takes at once, its whole part if None; gradients are added up.
    precision : torch.dtype, optional
        torch.bfloat16 or torch.float16: forward and backward passes under autocast, the latter with a scaled loss.
    channels_last : bool
        Order of images and weights in memory.
    frozen_batch_norm : bool
        Batch normalizations use their running statistics and leave them as they are.
    checkpoints : Checkpoints, optional
        Where the run leaves what it needs to go on. If there is a checkpoint it does so, to the bit, after the readings
        of before.
    watch : callable
        Told of every step.

    Yields
    ------
    Reading
        With the model as it is at that moment (those of before excepted). Every rank has the same.

    Raises
    ------
    ValueError
        If an argument is out of range.
    FloatingPointError
        If the loss stops being finite.
    CheckpointError
        If a checkpoint of another run is in the way.
    Interrupted
        If `checkpoints` or a signal says so.
    """
    ranks = Ranks(communicator, next(model.parameters()))
    plan = Plan(
        images=len(training),
        epochs=epochs,
        batch_size=batch_size,
        read_every=read_every,
        seed=seed,
        rank=ranks.rank,
        ranks=ranks.size,
        micro_batch=micro_batch,
    )
    stepper = Stepper(
        model,
        optimizer,
        ranks,
        augmentation=augmentation,
        label_smoothing=label_smoothing,
        precision=precision,
        channels_last=channels_last,
        frozen_batch_norm=frozen_batch_norm,
        seed=seed,
    )
    state = RunState(model, optimizer, stepper.scaler, augmentation, Progress())
    keeper = Keeper(checkpoints, state, ranks, plan.identity | stepper.identity | {"schedule": repr(schedule)})
    keeper.resume()
    return _readings(plan, stepper, schedule, keeper, training, validation, watch)


def _readings(
    plan: Plan,
    stepper: Stepper,
    schedule: Schedule,
    keeper: Keeper,
    training: ImageSource,
    validation: ImageSource,
    watch: Callable[[Step], None],
) -> Iterator[Reading]:
    yield from list(keeper.state.progress.readings)
    with keeper.at_work():
        yield from _steps(plan, stepper, schedule, keeper, training, validation, watch)


def _steps(
    plan: Plan,
    stepper: Stepper,
    schedule: Schedule,
    keeper: Keeper,
    training: ImageSource,
    validation: ImageSource,
    watch: Callable[[Step], None],
) -> Iterator[Reading]:
    progress = keeper.state.progress
    for batch in plan.batches(training, progress.iteration):
        set_rates(stepper.optimizer, schedule, (progress.iteration + 0.5) / plan.steps_per_epoch)
        loss = stepper.step(batch, progress.iteration, (progress.iteration + 1) / plan.steps_per_epoch)
        progress.iteration += 1
        progress.losses.append(loss)
        watch(plan.step(progress.iteration, loss, batch.images))
        reading = _read(plan, stepper, progress, validation) if plan.reads(progress.iteration) else None
        interrupted = keeper.after_step(last=progress.iteration == plan.steps)
        if reading is not None:
            yield reading
        if interrupted:
            raise keeper.interruption(plan.steps)


def _read(plan: Plan, stepper: Stepper, progress: Progress, validation: ImageSource) -> Reading:
    average_running_statistics(stepper.model, stepper.ranks)
    validation_loss, correct = evaluate(
        stepper.model, validation, label_smoothing=stepper.label_smoothing, communicator=stepper.ranks.communicator
    )
    reading = Reading(
        epoch=progress.iteration / plan.steps_per_epoch,
        iteration=progress.iteration,
        training_loss=sum(progress.losses) / len(progress.losses),
        validation_loss=validation_loss,
        validation_accuracy=correct / len(validation),
        training_seconds=progress.seconds,
    )
    progress.readings.append(reading)
    progress.losses.clear()
    return reading


def set_rates(optimizer: Optimizer, schedule: Schedule, epoch: float) -> None:
    """Set the learning rate and the momentum of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = schedule.rate(epoch)
        group["momentum"] = schedule.momentum(epoch)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    images: ImageSource,
    *,
    label_smoothing: float = 0.0,
    communicator: Communicator | None = None,
) -> tuple[float, int]:
    """Return the mean loss and the number of correctly classified images, with running BatchNorm statistics.

    Ranks share the images; each returns the result for all of them.
    """
    model.eval()
    like = next(model.parameters())
    ranks = Ranks(communicator, like)
    mine_N = torch.arange(len(images))[ranks.rank :: ranks.size]
    loss, correct = 0.0, 0
    for pixels_BCHW, labels_B in images.batches(mine_N.split(EVALUATION_BATCH), epoch=0):
        labels = labels_B.to(like.device)
        logits_BK = model(pixels_BCHW.to(like))
        mean = cross_entropy(logits_BK, labels, label_smoothing=label_smoothing)
        loss += mean.item() * (len(labels) / len(images))
        correct += int((logits_BK.argmax(dim=1) == labels).sum())
    losses, counts = zip(*ranks.gather([loss, correct]), strict=True)
    return sum(losses), int(sum(counts))

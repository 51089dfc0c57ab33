"""One step of an optimizer, whatever the number of ranks and micro-batches that share its batch.

Dimension letters: B images of a micro-batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from kinji.kfac import KFAC
from kinji.training.batch_norm import freeze
from kinji.training.plan import Batch
from kinji.training.ranks import Ranks
from kinji.training.source import Augmentation


class Stepper:
    """Differentiates the loss of a batch and lets the optimizer step.

    The gradient is that of the mean loss over the batch: micro-batches of all ranks count by their images. K-FAC
    averages its statistics over them, each counting as much, which is the same wherever they are of one size.

    Parameters
    ----------
    model, optimizer
        Changed in place. K-FAC is told of the scaler and of the micro-batches, and brings gradients of ranks together
        itself; for any other optimizer it is done here. Other parameters are those of `kinji.training.train`.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        ranks: Ranks,
        *,
        augmentation: Augmentation | None,
        label_smoothing: float,
        precision: torch.dtype | None,
        channels_last: bool,
        frozen_batch_norm: bool,
        seed: int,
    ) -> None:
        if precision not in (None, torch.bfloat16, torch.float16):
            raise ValueError(f"precision must be None, torch.bfloat16 or torch.float16, got {precision}")
        self.model, self.optimizer, self.ranks = model, optimizer, ranks
        self.augmentation, self.label_smoothing, self.seed = augmentation, label_smoothing, seed
        self.precision, self.frozen_batch_norm = precision, frozen_batch_norm
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        like = next(model.parameters())
        self.device, self.dtype = like.device, like.dtype
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision is torch.float16)
        if channels_last:
            model.to(memory_format=self.memory_format)
        if isinstance(optimizer, KFAC) and self.scaler.is_enabled():
            optimizer.grad_scaler = self.scaler

    @property
    def identity(self) -> dict[str, str | float]:
        """What a run must have alike to go on from a checkpoint."""
        return {
            "optimizer": type(self.optimizer).__name__,
            "label_smoothing": self.label_smoothing,
            "precision": str(self.precision),
            "frozen_batch_norm": self.frozen_batch_norm,
            "type": f"{self.dtype} on {self.device.type}",
        }

    def step(self, batch: Batch, iteration: int, epoch: float) -> float:
        """Take one step.

        Parameters
        ----------
        batch
            This rank's share.
        iteration
            Steps before this one.
        epoch
            At the end of the step.

        Returns
        -------
        float
            The mean loss over the batch, before the step.

        Raises
        ------
        FloatingPointError
            The loss is not finite.
        """
        self.model.train()
        if self.frozen_batch_norm:
            freeze(self.model)
        if isinstance(self.optimizer, KFAC):
            self.optimizer.accumulation_steps = batch.passes
        self.optimizer.zero_grad()
        losses = [self._differentiate(*part, batch.images, (iteration, k)) for k, part in enumerate(batch.parts)]
        loss = self.ranks.mean(torch.stack(losses).sum().item())
        self._refuse(loss, epoch)
        if not isinstance(self.optimizer, KFAC):
            self.ranks.average_gradients(self.model.parameters())
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss

    def _differentiate(self, pixels_BCHW: Tensor, labels_B: Tensor, images: int, place: tuple[int, int]) -> Tensor:
        """Add the gradient of a micro-batch; return its part of the mean loss over this rank's images."""
        weight = len(labels_B) * self.ranks.size / images
        pixels_BCHW = pixels_BCHW.to(self.device, self.dtype)
        targets = labels_B.to(self.device)
        if self.augmentation is not None:
            generator = torch.Generator().manual_seed(self._chance(*place))
            pixels_BCHW, targets = self.augmentation(pixels_BCHW, targets, generator)
        with torch.autocast(self.device.type, self.precision, enabled=self.precision is not None):
            logits_BK = self.model(pixels_BCHW.contiguous(memory_format=self.memory_format))
            loss = cross_entropy(logits_BK, targets, label_smoothing=self.label_smoothing) * weight
        if isinstance(self.optimizer, KFAC):
            self.optimizer.form_statistics(logits_BK)
        self.scaler.scale(loss).backward()
        return loss.detach()

    def _chance(self, iteration: int, number: int) -> int:
        """Return the seed of what is drawn for a micro-batch."""
        place = (self.seed, iteration, number * self.ranks.size + self.ranks.rank)
        return int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0])

    def _refuse(self, loss: float, epoch: float) -> None:
        if not math.isfinite(loss):
            rate = self.optimizer.param_groups[0]["lr"]
            raise FloatingPointError(
                f"the training loss became {loss} in epoch {math.ceil(epoch)}: "
                f"lower the learning rate (now {rate:.3g}), lengthen the warm-up, or (K-FAC) raise the damping"
            )

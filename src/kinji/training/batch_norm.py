"""Batch normalization on several ranks: by each rank's own part of the batch, frozen, or by the whole batch.

torch's own SyncBatchNorm needs GPUs and torch.distributed; the one here takes any communicator of `kinji.kfac`, and its
layers have K-FAC's blocks.

Dimension letters: B images of a part, C channels, H height, W width, R ranks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kinji.kfac import Communicator
from kinji.training.ranks import Ranks


def freeze(model: nn.Module) -> None:
    """Let batch normalizations use their running statistics, until the next ``model.train()``."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


@torch.no_grad()
def average_running_statistics(model: nn.Module, ranks: Ranks) -> None:
    """Average the running statistics of batch normalizations over the ranks, in place (Akiba et al. 2017)."""
    modules = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    kept = [buffer for module in modules for buffer in (module.running_mean, module.running_var) if buffer is not None]
    ranks.average(kept, "running statistics")


def synchronize_batch_norm(model: nn.Module, communicator: Communicator) -> None:
    """Let every `torch.nn.BatchNorm2d` normalize by the mean and variance of the parts of all ranks, in training.

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place; parameters and hooks stay.
    communicator : Communicator
        Every rank calls the same layers in the same order.
    """
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SynchronizedBatchNorm2d  # a new module would lose the hooks of an optimizer
            module.communicator = communicator  # type: ignore[assignment]


class SynchronizedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalization over all ranks; made by `synchronize_batch_norm`.

    Attributes
    ----------
    batch_statistics : tuple of torch.Tensor
        mean_C and variance_C of the latest batch, for K-FAC.
    """

    communicator: Communicator
    batch_statistics: tuple[Tensor, Tensor]

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Normalize; the gradient takes into account what this part means for the other ranks."""
        if not self.training:
            return super().forward(x_BCHW)
        full_BCHW = x_BCHW.to(self.weight.dtype)
        count, mean_C, variance_C = self._over_ranks(full_BCHW)
        self.batch_statistics = (mean_C.detach(), variance_C.detach())
        self._remember(count)
        scale_C = self.weight * (variance_C + self.eps).rsqrt()
        shift_C = self.bias - mean_C * scale_C
        return (full_BCHW * scale_C[:, None, None] + shift_C[:, None, None]).to(x_BCHW.dtype)

    def _over_ranks(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the number, mean and (biased) variance of all ranks' numbers of a channel (Chan et al. 1983)."""
        variance_C, mean_C = torch.var_mean(x_BCHW, dim=(0, 2, 3), correction=0)
        count = mean_C.new_tensor([x_BCHW.numel() // len(mean_C)])
        gathered = _gather(torch.cat([count, mean_C, variance_C]), self.communicator)
        counts_R1, means_RC, variances_RC = gathered.split([1, len(mean_C), len(mean_C)], dim=1)
        shares_R1 = counts_R1 / counts_R1.sum()
        mean_C = (shares_R1 * means_RC).sum(0)
        return counts_R1.sum(), mean_C, (shares_R1 * (variances_RC + (means_RC - mean_C) ** 2)).sum(0)

    @torch.no_grad()
    def _remember(self, count: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        weight = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        mean_C, variance_C = self.batch_statistics
        self.running_mean.lerp_(mean_C.to(self.running_mean.dtype), weight)
        self.running_var.lerp_((variance_C * (count / (count - 1))).to(self.running_var.dtype), weight)


class _Gather(torch.autograd.Function):
    """Each rank's vector, as the rows of a matrix on every rank."""

    @staticmethod
    def forward(ctx: Any, vector: Tensor, communicator: Communicator) -> Tensor:
        ctx.communicator = communicator
        rows = vector.new_empty(communicator.size, len(vector))
        rows[communicator.rank] = vector
        communicator.carried_bytes["normalization"] += rows.nbytes
        communicator.start([rows[communicator.rank]] * communicator.size, list(rows))()
        return rows

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Add up what all ranks' losses say of this rank's vector."""
        communicator: Communicator = ctx.communicator
        sent = gradients[0].contiguous()
        received = sent.clone()
        communicator.carried_bytes["normalization"] += sent.nbytes
        communicator.start(list(sent), list(received))()
        return received.sum(0), None


def _gather(vector: Tensor, communicator: Communicator) -> Tensor:
    return _Gather.apply(vector, communicator)

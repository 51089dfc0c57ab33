"""Batch normalization on several ranks: frozen, by the ranks' own parts of the batch, or by the whole batch.

Dimension letters: B images of a part, C channels, H height, W width, R ranks.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

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

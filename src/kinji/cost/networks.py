"""Networks whose steps are measured or modelled; for the latter on the meta device: shapes without memory.

Dimension letters: N sequences, T tokens, D hidden width, H heads.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

Built = tuple[nn.Module, tuple[int, ...]]
"""A network and the shape of one example."""


class Attention(nn.Module):
    """Softmax attention of H heads, without projections."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, query_NTD: Tensor, key_NTD: Tensor, value_NTD: Tensor) -> Tensor:
        """Return the attended values (N, T, D)."""
        parts = [x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (query_NTD, key_NTD, value_NTD)]
        return scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)


class BertBlock(nn.Module):
    """One encoder block of BERT (Devlin et al. 2019): attention and a feed-forward part, each with a LayerNorm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        self.attention = Attention(heads)
        self.attention_norm = nn.LayerNorm(width)
        self.expand, self.contract = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x_NTD: Tensor) -> Tensor:
        """Return the block's output (N, T, D)."""
        attended = self.output(self.attention(self.query(x_NTD), self.key(x_NTD), self.value(x_NTD)))
        x_NTD = self.attention_norm(x_NTD + attended)
        return self.norm(x_NTD + self.contract(gelu(self.expand(x_NTD))))


def _bert(blocks: int, width: int, heads: int) -> Callable[[int], Built]:
    return lambda tokens: (nn.Sequential(*(BertBlock(width, heads) for _ in range(blocks))), (tokens, width))


def _resnet(name: str) -> Callable[[int], Built]:
    return lambda pixels: (torchvision.models.get_model(name, weights=None), (3, pixels, pixels))


_BUILDERS: dict[str, Callable[[int], Built]] = {
    "resnet18": _resnet("resnet18"),
    "resnet50": _resnet("resnet50"),
    "bert-base-block": _bert(1, 768, 12),
    "bert-large-block": _bert(1, 1024, 16),
    "bert-base": _bert(12, 768, 12),
    "bert-large": _bert(24, 1024, 16),
}
NETWORKS = tuple(_BUILDERS)


def is_transformer(name: str) -> bool:
    """Whether the size of an example is a number of tokens instead of pixels."""
    return name.startswith("bert")


def usual_size(name: str) -> int:
    """Return the published size of an example: 224 pixels (He et al. 2016) or 128 tokens (phase 1 of BERT)."""
    return 128 if is_transformer(name) else 224


def build(name: str, size: int, device: str = "meta") -> Built:
    """Build a network; BERT without its embeddings and head.

    Parameters
    ----------
    name
        One of `NETWORKS`.
    size
        Pixels along an edge, or tokens of a sequence.
    device
        Where its weights are; ``meta`` for none.

    Raises
    ------
    ValueError
        There is no such network.
    """
    if name not in _BUILDERS:
        nearest = difflib.get_close_matches(name, NETWORKS, n=1, cutoff=0.0)[0]
        raise ValueError(f"no network {name!r}. Did you mean {nearest!r}? Known: {', '.join(NETWORKS)}.")
    with torch.device(device):
        return _BUILDERS[name](size)

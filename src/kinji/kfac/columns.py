"""The cheaper order of products where a layer saw few positions.

The gradient of a layer is ``D X^T``, with a column of output gradients and one of inputs for each of r positions. Where
r is small, ``(G^-1 D) (A^-1 X)^T`` takes ``2 r (i^2 + o^2 + i o)`` operations instead of the ``2 i o (i + o)`` of
``G^-1 (D X^T) A^-1``; in the last layers of a ResNet on small images, several times fewer.

Dimension letters: i inputs of a layer, o outputs, r positions of a batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

Columns = tuple[Tensor, Tensor]
"""Inputs (i, r) and output gradients (o, r) of a backward pass."""
ROUNDING = 8
"""How many times the rounding of its numbers a gradient may differ from the product."""


def are_few(positions: int, inputs: int, outputs: int) -> bool:
    """Whether the order that goes by columns takes fewer operations."""
    i, o = inputs, outputs
    return positions * (i * i + o * o + i * o) < i * o * (i + o)


def make_up(gradient_oi: Tensor, columns: Columns) -> bool:
    """Whether a gradient is the product of columns, to rounding.

    It is not if it was clipped, scaled, or if a penalty or another backward pass was added. Both are applied to one
    vector (Freivalds 1977), which takes much less than either product.
    """
    x_ir, d_or = columns
    probe_i = torch.arange(len(x_ir), dtype=x_ir.dtype, device=x_ir.device).cos()
    difference_o = torch.mv(gradient_oi, probe_i) - torch.mv(d_or, torch.mv(x_ir.T, probe_i))
    rounding = ROUNDING * torch.finfo(x_ir.dtype).eps * x_ir.norm() * d_or.norm()
    return bool(difference_o.norm() <= rounding)

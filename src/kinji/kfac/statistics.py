"""Stage 1: the statistics of one batch from which each layer's block of the Fisher matrix is made.

The empirical Fisher block of a layer is approximated by ``F = G (x) A`` (Kronecker factors of the output
gradients and of the inputs), that of a batch normalization by one 2 x 2 matrix per channel. Scaling as in
Osawa et al., "Scalable and practical natural gradient for large-scale deep learning", arXiv 2002.06015
(SP-NGD):

- ``A`` is the mean over examples AND positions of ``a a^T``,
- ``G`` is the mean over examples, the SUM over positions, of ``g g^T``,
- ``g`` is the gradient of ONE example's loss: autograd returns it divided by ``m`` (the loss is a mean), so
  the product of two such gradients, averaged over the examples, is multiplied by ``m^2 / m = m``.

Dimension letters: m examples of the batch, s positions (1 for a plain linear layer), c channels, i inputs of
a layer (with the homogeneous coordinate of its bias), o its outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


def add_kronecker_factors(
    layer: nn.Linear | nn.Conv2d, input_: Tensor, gradient: Tensor, a_ii: Tensor, g_oo: Tensor, *, fresh: bool
) -> None:
    """Add the two Kronecker factors of a layer's Fisher block to sums.

    Parameters
    ----------
    layer
        The layer; its bias, if it has a trainable one, is the last row and column of ``A``.
    input_ : (m, ..., d_in) or (m, d_in, height, width)
        What the layer was given.
    gradient : (m, ..., o) or (m, o, height, width)
        Gradient of the batch's mean loss by the layer's output.
    a_ii, g_oo
        Where to add the input factor and the output-gradient factor.
    fresh
        Whether to ignore what the sums hold, as memory in use is much faster than new memory.
    """
    columns_i_ms = _input_columns(layer, input_)
    columns_o_ms = _output_columns(layer, gradient)
    a_ii.addmm_(columns_i_ms, columns_i_ms.T, beta=0 if fresh else 1, alpha=1 / columns_i_ms.shape[1])
    g_oo.addmm_(columns_o_ms, columns_o_ms.T, beta=0 if fresh else 1, alpha=len(input_))


def unit_wise_fisher(layer: BatchNorm, input_: Tensor, gradient: Tensor, batch_statistics: bool) -> Tensor:
    """Form the 2 x 2 Fisher matrix of each channel's scale and shift (SP-NGD's unit-wise rule).

    Parameters
    ----------
    layer
        A batch normalization with scale and shift.
    input_, gradient : (m, c, ...)
        What the layer was given, and the gradient of the mean loss by its output.
    batch_statistics
        Whether the forward pass normalized by the batch's own mean and variance, or by the running ones.

    Returns
    -------
    (3, c)
        ``E[g_scale^2]``, ``E[g_scale g_shift]`` and ``E[g_shift^2]``: the upper triangles.
    """
    shape = (*input_.shape[:2], -1)
    scale_mc = (gradient * _normalized(layer, input_, batch_statistics)).reshape(shape).sum(2)
    shift_mc = gradient.reshape(shape).sum(2)
    products = (scale_mc * scale_mc, scale_mc * shift_mc, shift_mc * shift_mc)
    return torch.stack([product.sum(0) for product in products]).mul_(len(input_))


def trainable_bias(layer: nn.Linear | nn.Conv2d) -> nn.Parameter | None:
    """Return the layer's bias if it has one and it is being trained."""
    return layer.bias if isinstance(layer.bias, nn.Parameter) and layer.bias.requires_grad else None


def _input_columns(layer: nn.Linear | nn.Conv2d, input_: Tensor) -> Tensor:
    """Lay the inputs out as columns (i, m s), with a last row of ones if the layer has a bias."""
    rows = _patches(layer, input_) if isinstance(layer, nn.Conv2d) else input_.reshape(-1, layer.in_features).T
    weights, ones = layer.weight[0].numel(), trainable_bias(layer) is not None
    columns_i_ms = input_.new_ones(weights + ones, rows.numel() // weights)
    columns_i_ms[:weights].view(rows.shape).copy_(rows)
    return columns_i_ms


def _patches(layer: nn.Conv2d, input_: Tensor) -> Tensor:
    """View the padded input as (channels, kernel height, width, m, output height, width), without a copy."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = functional.pad(input_, _padding(layer), mode=mode).transpose(0, 1)
    extent = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    outputs = [(n - e - 1) // s + 1 for n, e, s in zip(padded.shape[2:], extent, layer.stride, strict=True)]
    by_channel, by_example, by_row, by_column = padded.stride()
    taps = (layer.dilation[0] * by_row, layer.dilation[1] * by_column)
    positions = (layer.stride[0] * by_row, layer.stride[1] * by_column)
    shape = (len(padded), *layer.kernel_size, len(input_), *outputs)
    return padded.as_strided(shape, (by_channel, *taps, by_example, *positions))


def _padding(layer: nn.Conv2d) -> list[int]:
    """Padding in the order of ``torch.nn.functional.pad``: left, right, top, bottom."""
    if layer.padding == "same":
        vertical, horizontal = (d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True))
        return [horizontal // 2, (horizontal + 1) // 2, vertical // 2, (vertical + 1) // 2]
    if isinstance(layer.padding, str):
        return [0, 0, 0, 0]
    vertical, horizontal = layer.padding
    return [horizontal, horizontal, vertical, vertical]


def _output_columns(layer: nn.Linear | nn.Conv2d, gradient: Tensor) -> Tensor:
    """Lay the output gradients out as columns (o, m s)."""
    if isinstance(layer, nn.Conv2d):
        return gradient.transpose(0, 1).reshape(layer.out_channels, -1)
    return gradient.reshape(-1, layer.out_features).T


def _normalized(layer: BatchNorm, input_: Tensor, batch_statistics: bool) -> Tensor:
    """Repeat the normalization of the forward pass, before scale and shift."""
    if batch_statistics or layer.running_mean is None or layer.running_var is None:
        return functional.batch_norm(input_, None, None, training=True, eps=layer.eps)
    return functional.batch_norm(input_, layer.running_mean, layer.running_var, eps=layer.eps)

"""Stage 1: the statistics of one batch from which each layer's block of the Fisher matrix is made.

The Fisher block of a layer is approximated by ``F = G (x) A`` (Kronecker factors of the output gradients and of the
inputs), that of a normalization by one 2 x 2 matrix for each pair of scale and shift. Scaling as in Osawa et al.,
"Scalable and practical natural gradient for large-scale deep learning", arXiv 2002.06015 (SP-NGD):

- ``A`` is the mean over examples AND positions of ``a a^T``,
- ``G`` is the mean over examples, the SUM over positions, of ``g g^T``,
- ``g`` is the gradient of ONE example's loss: autograd returns it divided by ``m`` (the loss is a mean), so
  the product of two such gradients, averaged over the examples, is multiplied by ``m^2 / m = m``.

Operands may be rounded to half precision before they are multiplied, as tensor cores want them; sums are not.

Dimension letters: m examples of the batch (the first dimension of a layer's input), s positions (1 for a plain linear
layer), c channels, p parameters of a normalization, q groups of a convolution, i inputs of a layer or group (with the
homogeneous coordinate of its bias), o its outputs, v entries of an embedding.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from kinji.kfac.products import add_gram

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
Normalization = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.LayerNorm
KroneckerLayer = nn.Linear | nn.Conv2d


def add_input_factor(
    layer: KroneckerLayer, input_: Tensor, a_ii: Tensor, *, fresh: bool, dtype: torch.dtype | None = None
) -> None:
    """Add the input factor ``A`` of a layer's Fisher block to a sum.

    Parameters
    ----------
    layer
        The layer; its bias, if it has a trainable one, is the last row and column of ``A``.
    input_ : (m, ..., d_in) or (m, d_in, height, width)
        What the layer was given.
    a_ii : (i, i), or (q, i, i) for a convolution with groups
        The sum, in the lower triangle.
    fresh
        Whether to ignore what the sum holds, as memory in use is much faster than new memory.
    dtype
        What the operands are rounded to; None to leave them.
    """
    columns = input_columns(layer, input_, dtype or layer.weight.dtype)
    add_gram(columns, a_ii, scale=1 / columns.shape[-1], fresh=fresh)


def add_output_factor(
    layer: KroneckerLayer, gradient: Tensor, g_oo: Tensor, *, fresh: bool, dtype: torch.dtype | None = None
) -> None:
    """Add the factor ``G`` of the output gradients to a sum.

    Parameters
    ----------
    gradient : (m, ..., o) or (m, o, height, width)
        Gradient of the batch's mean loss by the layer's output.
    g_oo : (o, o), or (q, o, o) for a convolution with groups
        The sum, in the lower triangle. Other parameters are those of `add_input_factor`.
    """
    columns = output_columns(layer, gradient, dtype or layer.weight.dtype)
    add_gram(columns, g_oo, scale=_examples(gradient), fresh=fresh)


def embedding_frequencies(layer: nn.Embedding, indices: Tensor) -> Tensor:
    """Form ``A`` of an embedding, a linear layer of one-hot inputs: a diagonal matrix.

    Parameters
    ----------
    indices : (m, ...)
        Entries that were looked up; those of ``padding_idx`` are not trained and count nowhere.

    Returns
    -------
    (v,)
        Each entry's share of the positions.
    """
    shares_n = _looked_up(layer, indices).to(layer.weight.dtype).flatten() / indices.numel()
    return shares_n.new_zeros(layer.num_embeddings).index_add_(0, indices.flatten(), shares_n)


def add_embedding_output_factor(
    layer: nn.Embedding,
    indices: Tensor,
    gradient: Tensor,
    g_oo: Tensor,
    *,
    fresh: bool,
    dtype: torch.dtype | None = None,
) -> None:
    """Add ``G`` of an embedding to a sum; parameters as those of `add_output_factor`."""
    trained = gradient.to(dtype or layer.weight.dtype) * _looked_up(layer, indices)[..., None]
    add_gram(trained.flatten(0, -2).T, g_oo, scale=_examples(gradient), fresh=fresh)


def normalization_gradients(
    layer: Normalization, input_: Tensor, gradient: Tensor, batch_statistics: bool
) -> tuple[Tensor, Tensor]:
    """Return the gradients of each example's loss, over m, by the scale and by the shift of a normalization.

    Parameters
    ----------
    layer
        A batch or layer normalization.
    input_, gradient : (m, c, ...) or, for a layer normalization, (m, ..., p)
        What the layer was given, and the gradient of the mean loss by its output.
    batch_statistics
        Whether the forward pass normalized by the batch's own mean and variance, or by the running ones.

    Returns
    -------
    two of (m, p)
    """
    x, gradient = input_.to(layer.weight.dtype), gradient.to(layer.weight.dtype)
    if isinstance(layer, nn.LayerNorm):
        by_example = (len(x) if x.ndim > len(layer.normalized_shape) else 1, -1, layer.weight.numel())
        products = gradient * functional.layer_norm(x, layer.normalized_shape, eps=layer.eps)
        return products.reshape(by_example).sum(1), gradient.reshape(by_example).sum(1)
    x_mcs, gradient_mcs = (tensor.reshape(*tensor.shape[:2], -1) for tensor in (x, gradient))
    centred_mcs, variance_c = _centred(layer, x_mcs, batch_statistics)
    products_mc = torch.linalg.vecdot(centred_mcs, gradient_mcs)
    return products_mc * (variance_c + layer.eps).rsqrt(), gradient_mcs.sum(2)


def unit_wise_fisher(scale_mp: Tensor, shift_mp: Tensor) -> Tensor:
    """Form the 2 x 2 Fisher matrix of each pair of scale and shift (SP-NGD's unit-wise rule).

    Returns
    -------
    (3, p)
        ``E[g_scale^2]``, ``E[g_scale g_shift]`` and ``E[g_shift^2]``: the upper triangles.
    """
    products = (scale_mp * scale_mp, scale_mp * shift_mp, shift_mp * shift_mp)
    return torch.stack([product.sum(0) for product in products]).mul_(len(scale_mp))


def trainable_bias(layer: nn.Module) -> nn.Parameter | None:
    """Return the layer's bias if it has one and it is being trained."""
    bias = layer.bias
    return bias if isinstance(bias, nn.Parameter) and bias.requires_grad else None


def input_columns(layer: KroneckerLayer, input_: Tensor, dtype: torch.dtype) -> Tensor:
    """Lay the inputs out as columns (i, m s) or (q, i, m s), with a last row of ones if the layer has a bias."""
    rows = _patches(layer, input_) if isinstance(layer, nn.Conv2d) else input_.reshape(-1, layer.in_features).T
    groups, ones = _groups(layer), trainable_bias(layer) is not None
    weights = layer.weight[0].numel()
    shape = (groups, weights + ones, rows.numel() // (groups * weights))
    columns_qis = torch.empty(shape, dtype=dtype, device=input_.device)
    for columns_is, of_group in zip(columns_qis, rows.chunk(groups), strict=True):
        columns_is[:weights].view(of_group.shape).copy_(of_group)
    columns_qis[:, weights:] = 1
    return columns_qis if groups > 1 else columns_qis[0]


def output_columns(layer: KroneckerLayer, gradient: Tensor, dtype: torch.dtype) -> Tensor:
    """Lay the output gradients out as columns (o, m s) or (q, o, m s)."""
    gradient = gradient.to(dtype)
    if isinstance(layer, nn.Linear):
        return gradient.reshape(-1, layer.out_features).T
    columns_os = gradient.transpose(0, 1).reshape(layer.out_channels, -1)
    return columns_os if layer.groups == 1 else columns_os.unflatten(0, (layer.groups, -1))


def _looked_up(layer: nn.Embedding, indices: Tensor) -> Tensor:
    return torch.ones_like(indices, dtype=torch.bool) if layer.padding_idx is None else indices != layer.padding_idx


def _examples(tensor: Tensor) -> int:
    """The batch's length; a linear layer may also be given a single vector."""
    return len(tensor) if tensor.ndim > 1 else 1


def _groups(layer: KroneckerLayer) -> int:
    return layer.groups if isinstance(layer, nn.Conv2d) else 1


def _patches(layer: nn.Conv2d, input_: Tensor) -> Tensor:
    """View the padded input as (channels, kernel height, width, m, output height, width), without a copy."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = functional.pad(input_, _padding(layer), mode=mode).transpose(0, 1)
    height, width = _outputs(layer, padded.shape[2:])
    by_channel, by_example, by_row, by_column = padded.stride()
    taps = (layer.dilation[0] * by_row, layer.dilation[1] * by_column)
    positions = (layer.stride[0] * by_row, layer.stride[1] * by_column)
    shape = (len(padded), *layer.kernel_size, len(input_), height, width)
    return padded.as_strided(shape, (by_channel, *taps, by_example, *positions))


def _outputs(layer: nn.Conv2d, padded: torch.Size) -> Iterator[int]:
    """Height and width of the output of a padded input."""
    sizes = zip(padded, layer.kernel_size, layer.stride, layer.dilation, strict=True)
    return ((n - dilation * (kernel - 1) - 1) // stride + 1 for n, kernel, stride, dilation in sizes)


def _padding(layer: nn.Conv2d) -> list[int]:
    """Padding in the order of ``torch.nn.functional.pad``: left, right, top, bottom."""
    if layer.padding == "same":
        vertical, horizontal = (d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True))
        return [horizontal // 2, (horizontal + 1) // 2, vertical // 2, (vertical + 1) // 2]
    if isinstance(layer.padding, str):
        return [0, 0, 0, 0]
    vertical, horizontal = layer.padding
    return [horizontal, horizontal, vertical, vertical]


def _centred(layer: BatchNorm, x_mcs: Tensor, batch_statistics: bool) -> tuple[Tensor, Tensor]:
    """Take off the mean that the forward pass took off, and return the variance by which it divided, too.

    On a CPU sums and products of two tensors take less time than torch's batch normalization.
    """
    if batch_statistics and isinstance(of_ranks := getattr(layer, "batch_statistics", None), tuple):
        mean_c, variance_c = of_ranks  # of the parts of all ranks
        return x_mcs - mean_c[:, None], variance_c
    if batch_statistics or layer.running_mean is None or layer.running_var is None:
        positions = x_mcs.shape[2]
        centred_mcs = x_mcs - (x_mcs.sum(2).mean(0) / positions)[:, None]
        return centred_mcs, torch.linalg.vecdot(centred_mcs, centred_mcs).mean(0) / positions
    return x_mcs - layer.running_mean[:, None], layer.running_var

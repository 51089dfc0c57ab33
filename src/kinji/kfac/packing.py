"""Symmetric matrices and lists of tensors as the flat vectors that travel between ranks.

A symmetric matrix travels as its upper triangle, in rectangular full packed format (Gustavson et al. 2010): the
triangle's last rows are folded under its first ones, so packing is two block copies and no gather. What is unpacked
stays a triangle; the Cholesky factorization reads no more of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def pack_triangle(matrix: Tensor) -> Tensor:
    """Pack the upper triangle of an (n, n) symmetric matrix into n (n + 1) / 2 numbers."""
    n, half = len(matrix), (len(matrix) + 1) // 2
    packed = matrix.new_empty(n * (n + 1) // 2)
    first_rows, fold = _rectangle(packed, n)
    first_rows.copy_(matrix[:half])
    fold.triu_(1).add_(matrix[half:, half:].tril())
    return packed


def unpack_triangle(packed: Tensor, n: int) -> Tensor:
    """Restore the (n, n) upper triangle that `pack_triangle` packed, with zeros below it."""
    half = (n + 1) // 2
    first_rows, fold = _rectangle(packed, n)
    matrix = packed.new_zeros(n, n)
    matrix[:half] = first_rows
    matrix[half:, half:] = fold.T
    return matrix.triu_()


def flatten(tensors: Sequence[Tensor], like: Tensor) -> Tensor:
    """Concatenate tensors of any shapes (possibly none) into one vector of the type and device of ``like``."""
    return torch.cat([like.new_empty(0), *(tensor.reshape(-1) for tensor in tensors)])


def split_like(flat: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Cut a vector into pieces (views) of the shapes of the tensors it was flattened from."""
    pieces = flat.split([tensor.numel() for tensor in tensors])
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, tensors, strict=True)]


def _rectangle(packed: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """View the packed vector as the first ceil(n / 2) rows and the fold in their unused corner."""
    half, even = (n + 1) // 2, 1 - n % 2
    rectangle = packed.view(half, n + even)
    return rectangle[:, even:], rectangle[1 - even :, : n - half]

"""Lists of tensors as the flat vectors that travel between ranks.

A symmetric matrix travels as its lower triangle, in rectangular full packed format (Gustavson et al. 2010): the
triangle's first rows are folded over its last ones, so packing is two block copies and no gather. What the matrix holds
above the diagonal is neither read nor restored. Memory is the caller's throughout, as new memory costs more than the
copy into it.

Dimension letters: n size of a matrix; ... matrices of one size.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def packed_lengths(tensors: Sequence[Tensor], symmetric: bool) -> list[int]:
    """Return how many numbers each tensor takes in a vector; a symmetric (n, n) matrix takes n (n + 1) / 2."""
    return [_triangle(tensor) if symmetric else tensor.numel() for tensor in tensors]


def pack(tensors: Sequence[Tensor], vector: Tensor, symmetric: bool) -> None:
    """Write tensors one after another into a vector of their length."""
    pieces = vector.split(packed_lengths(tensors, symmetric))
    for tensor, piece in zip(tensors, pieces, strict=True):
        if symmetric:
            _pack_triangle(tensor, piece)
        else:
            piece.view(tensor.shape).copy_(tensor)


def unpack(vector: Tensor, tensors: Sequence[Tensor], symmetric: bool) -> None:
    """Read back what `pack` wrote: of symmetric matrices the lower triangles."""
    pieces = vector.split(packed_lengths(tensors, symmetric))
    for tensor, piece in zip(tensors, pieces, strict=True):
        if symmetric:
            _unpack_triangle(piece, tensor)
        else:
            tensor.copy_(piece.view(tensor.shape))


def split_like(vector: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Cut a vector into pieces (views) of the shapes of tensors."""
    pieces = vector.split([tensor.numel() for tensor in tensors])
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, tensors, strict=True)]


def _triangle(matrix: Tensor) -> int:
    return matrix.numel() // matrix.shape[-1] * (matrix.shape[-1] + 1) // 2


def _pack_triangle(matrix: Tensor, packed: Tensor) -> None:
    last_rows, fold = _rectangle(packed, matrix)
    first = fold.shape[-1]
    last_rows.copy_(matrix[..., first:, :])
    fold.tril_(-1).add_(matrix[..., :first, :first].tril().mT)


def _unpack_triangle(packed: Tensor, matrix: Tensor) -> None:
    last_rows, fold = _rectangle(packed, matrix)
    first = fold.shape[-1]
    matrix[..., :first, :first] = fold.mT
    matrix[..., first:, :] = last_rows


def _rectangle(packed: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """View the packed vector as the last ceil(n / 2) rows and the fold in their unused corner."""
    n = matrix.shape[-1]
    first, width = n // 2, n + 1 - n % 2
    rectangle = packed.view(*matrix.shape[:-2], n - first, width)
    return rectangle[..., :n], rectangle[..., :first, width - first :]

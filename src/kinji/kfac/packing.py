"""Lists of tensors as the flat vectors that travel between ranks.

A symmetric matrix travels as its upper triangle, in rectangular full packed format (Gustavson et al. 2010): the
triangle's last rows are folded under its first ones, so packing is two block copies and no gather. What is unpacked
stays a triangle; the Cholesky factorization reads no more of it. Memory is the caller's throughout, as new memory costs
more than the copy into it.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def packed_lengths(tensors: Sequence[Tensor], symmetric: bool) -> list[int]:
    """Return how many numbers each tensor takes in a vector; symmetric (n, n) matrices take n (n + 1) / 2."""
    return [len(tensor) * (len(tensor) + 1) // 2 if symmetric else tensor.numel() for tensor in tensors]


def pack(tensors: Sequence[Tensor], vector: Tensor, symmetric: bool) -> None:
    """Write tensors one after another into a vector of their length."""
    pieces = vector.split(packed_lengths(tensors, symmetric))
    for tensor, piece in zip(tensors, pieces, strict=True):
        if symmetric:
            _pack_triangle(tensor, piece)
        else:
            piece.view(tensor.shape).copy_(tensor)


def unpack(vector: Tensor, tensors: Sequence[Tensor], symmetric: bool) -> None:
    """Read back what `pack` wrote; of symmetric matrices the upper triangle, with zeros below it."""
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


def _pack_triangle(matrix: Tensor, packed: Tensor) -> None:
    half = (len(matrix) + 1) // 2
    first_rows, fold = _rectangle(packed, len(matrix))
    first_rows.copy_(matrix[:half])
    fold.triu_(1).add_(matrix[half:, half:].tril())


def _unpack_triangle(packed: Tensor, matrix: Tensor) -> None:
    half = (len(matrix) + 1) // 2
    first_rows, fold = _rectangle(packed, len(matrix))
    matrix[:half] = first_rows
    matrix[half:, half:] = fold.T
    matrix.triu_()


def _rectangle(packed: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """View the packed vector as the first ceil(n / 2) rows and the fold in their unused corner."""
    half, even = (n + 1) // 2, 1 - n % 2
    rectangle = packed.view(half, n + even)
    return rectangle[:, even:], rectangle[1 - even :, : n - half]

"""Triangles: nothing is lost, nothing is sent twice."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kinji.kfac.packing import flatten, pack_triangle, split_like, unpack_triangle


@given(n=st.integers(1, 40))
def test_round_trip_of_exactly_one_triangle(n):
    square = torch.arange(n * n, dtype=torch.float64).view(n, n)
    symmetric = square.tril() + square.tril(-1).T
    packed = pack_triangle(symmetric)
    assert packed.shape == (n * (n + 1) // 2,)
    assert torch.equal(packed.sort().values, symmetric[torch.tril_indices(n, n).unbind()].sort().values)
    assert torch.equal(unpack_triangle(packed, n), symmetric.triu())


def test_pieces_are_views_of_the_flat_vector_in_order():
    tensors = [torch.arange(6.0).view(2, 3), torch.tensor(7.0), torch.empty(0), torch.arange(4.0)]
    flat = flatten(tensors, like=tensors[0])
    pieces = split_like(flat, tensors)
    assert all(torch.equal(piece, tensor) for piece, tensor in zip(pieces, tensors, strict=True))
    pieces[0][0, 0] = -1
    assert flat[0] == -1


def test_pieces_must_cover_the_vector():
    with pytest.raises(RuntimeError):
        split_like(torch.zeros(5), [torch.zeros(2), torch.zeros(2)])

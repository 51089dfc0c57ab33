"""Triangles: nothing is lost, nothing is sent twice."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kinji.kfac.packing import pack, packed_lengths, split_like, unpack

from .triangles import lower_alone, whole


@given(n=st.integers(1, 40))
def test_round_trip_of_exactly_one_triangle(n):
    square = torch.arange(n * n, dtype=torch.float64).view(n, n)
    symmetric = square.tril() + square.tril(-1).T
    vector, restored = (
        torch.full((n * (n + 1) // 2,), torch.nan, dtype=torch.float64),
        torch.full_like(square, torch.nan),
    )
    assert packed_lengths([symmetric], symmetric=True) == [len(vector)]
    pack([lower_alone(symmetric)], vector, symmetric=True)
    assert torch.equal(vector.sort().values, symmetric[torch.tril_indices(n, n).unbind()].sort().values)
    unpack(vector, [restored], symmetric=True)
    assert torch.equal(whole(restored), symmetric)


@pytest.mark.parametrize("n", [1, 4, 5])
def test_matrices_of_a_layers_groups_travel_as_triangles(n):
    squares = torch.randn(3, n, n)
    symmetric = squares + squares.mT
    vector, restored = torch.empty(3 * n * (n + 1) // 2), torch.full_like(squares, torch.nan)
    pack([lower_alone(symmetric)], vector, symmetric=True)
    unpack(vector, [restored], symmetric=True)
    assert torch.equal(whole(restored), symmetric)


TENSORS = [torch.arange(6.0).view(2, 3), torch.tensor(7.0), torch.empty(0), torch.arange(4.0)]


def test_tensors_of_any_shape_make_a_round_trip():
    vector, restored = torch.empty(11), [torch.empty_like(tensor) for tensor in TENSORS]
    pack(TENSORS, vector, symmetric=False)
    assert vector.tolist() == [0, 1, 2, 3, 4, 5, 7, 0, 1, 2, 3]
    unpack(vector, restored, symmetric=False)
    assert all(map(torch.equal, restored, TENSORS))


def test_pieces_are_views_in_order():
    vector = torch.arange(11.0)
    pieces = split_like(vector, TENSORS)
    assert [piece.shape for piece in pieces] == [tensor.shape for tensor in TENSORS]
    pieces[1].fill_(-1)
    assert vector[6] == -1


@pytest.mark.parametrize("length", [4, 12])
def test_a_vector_of_another_length_is_refused(length):
    with pytest.raises(RuntimeError, match="split"):
        pack(TENSORS, torch.zeros(length), symmetric=False)

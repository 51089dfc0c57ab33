"""Both executors against the definition of each routine, and against each other."""

import math

import numba
import numpy as np
import pytest
import torch

from kinji.hmatrix import compiled, eager
from kinji.hmatrix.compiled import pairs
from kinji.hmatrix.executor import executor
from kinji.hmatrix.kernels import FAR_AWAY, Kernel
from tests.hmatrix.problems import ALL_LENGTH_SCALES, assembled, cube_points, dense_matrix, normal, relative_error

BOTH = pytest.mark.parametrize("on", [compiled, eager], ids=["compiled", "eager"])
PRECISION = {torch.float32: 1e-5, torch.float64: 1e-12}
KINDS = pytest.mark.parametrize("dtype", PRECISION)


def close(ours, exact):
    assert ours.shape == exact.shape
    torch.testing.assert_close(
        ours, exact.to(ours.dtype), rtol=0, atol=PRECISION[ours.dtype] * max(1.0, biggest(exact))
    )


def biggest(x):
    return float(x.abs().max()) if x.numel() else 0.0


def positive_definite(boxes, order, dtype, seed=0):
    root = normal(boxes, order, order + 3, seed=seed)
    return (root @ root.mT + torch.eye(order)).to(dtype)


def test_the_device_chooses():
    assert executor(torch.device("cpu")) is compiled
    assert executor(torch.device("cuda")) is eager


@BOTH
@KINDS
@pytest.mark.parametrize("name", ALL_LENGTH_SCALES)
def test_kernel_blocks_are_those_of_the_dense_matrix(on, dtype, name):
    points = torch.cat([cube_points(40), torch.full((1, 3), FAR_AWAY, dtype=torch.float64)])
    kernel = Kernel(name, diagonal=3.0, length_scale=ALL_LENGTH_SCALES[name])
    dense = torch.zeros(41, 41, dtype=torch.float64)
    dense[:40, :40] = dense_matrix(kernel, points[:40])
    rows, columns = torch.arange(18).reshape(3, 6), torch.arange(18, 42).clamp(max=40).reshape(3, 8)
    out = torch.empty(3, 6, 8, dtype=dtype)
    on.kernel_blocks(kernel, points, rows, columns, out)
    close(out, torch.stack([dense[i][:, j] for i, j in zip(rows, columns, strict=True)]))
    assert kernel.entries == out.numel()


@BOTH
@pytest.mark.parametrize(("name", "value"), [("laplace", math.inf), ("gaussian", 1.0)])
def test_a_place_with_itself_gets_what_the_kernel_has_at_0(on, name, value):
    out, rows = torch.empty(1, 3, 3, dtype=torch.float64), torch.arange(3)[None]
    on.kernel_blocks(Kernel(name, diagonal=3.0), cube_points(3), rows, rows, out)
    assert (out.diagonal(dim1=1, dim2=2) == value).all()


@BOTH
@KINDS
@pytest.mark.parametrize("columns", [1, 5])
def test_a_sketch_is_the_block_times_the_random_matrix(on, dtype, columns):
    """More samples than are evaluated at once, and an empty place among them."""
    points = torch.cat([cube_points(330), torch.full((1, 3), FAR_AWAY, dtype=torch.float64)])
    kernel, rows = Kernel(diagonal=1.0), torch.arange(15).reshape(3, 5)
    samples = torch.stack([torch.arange(15 + s, 316 + s).clamp(max=330) for s in (0, 7, 15)])
    samples[1, 4] = 330
    random = normal(301, columns, dtype=dtype)
    blocks = torch.stack([kernel(points[i], points[j]) for i, j in zip(rows, samples, strict=True)])
    kernel.entries = 0
    close(on.sketch(kernel, points, rows, samples, random), blocks @ random.double())
    assert kernel.entries == blocks.numel()


@BOTH
@KINDS
@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
def test_products_with_and_without_indices(on, dtype, transpose_a, transpose_b):
    a, b = normal(4, 5, 3, dtype=dtype), normal(4, 3, 6, seed=1, dtype=dtype)
    left, right = torch.tensor([3, 0, 0, 1, 2]), torch.tensor([1, 1, 3, 0, 2])
    stored_a = a.mT.contiguous() if transpose_a else a
    stored_b = b.mT.contiguous() if transpose_b else b
    flags = {"transpose_a": transpose_a, "transpose_b": transpose_b}
    exact = a.double() @ b.double()
    close(on.multiply(stored_a, stored_b, **flags), exact)
    close(on.multiply(stored_a, stored_b, left=left, right=right, **flags), (a[left].double() @ b[right].double()))
    close(on.multiply(stored_a, stored_b, right=torch.arange(4), **flags), exact)


@BOTH
def test_products_of_parts_and_of_nothing(on):
    a, b = normal(3, 6, 7), normal(3, 8, 9, seed=1)
    close(on.multiply(a[:, 1:5, 2:6], b[:, 3:7, 4:5]), a[:, 1:5, 2:6] @ b[:, 3:7, 4:5])
    close(on.multiply(a[:, :, :0], b[:, :0]), torch.zeros(3, 6, 9))
    close(on.multiply(a[:, :0], b[:, :7]), torch.zeros(3, 0, 9))
    close(on.multiply(a[:0], b[:0, :7]), torch.zeros(0, 6, 9))


@BOTH
@KINDS
@pytest.mark.parametrize("method", ["cholesky", "lu"])
@pytest.mark.parametrize("order", [0, 1, 7])
@pytest.mark.parametrize("sides", [1, 4])
def test_solutions_and_determinants_are_the_dense_ones(on, dtype, method, order, sides):
    a = positive_definite(3, order, dtype)
    if method == "lu":
        a -= 4.0 * torch.eye(order, dtype=dtype)  # not definite any more, for most
    b = normal(3, order, sides + 2, dtype=dtype)[:, :, :sides]
    factors = on.factorize(a.clone(), method)
    assert not factors.info.any()
    kept = b.clone()
    exact = torch.linalg.solve(a.double(), b.double())
    assert relative_error(on.solve(factors, b).double(), exact) < 100 * PRECISION[dtype] or order == 0
    assert torch.equal(b, kept)
    exact_logdet = float(torch.linalg.slogdet(a.double())[1].sum())
    assert factors.log_determinant() == pytest.approx(
        exact_logdet, rel=100 * PRECISION[dtype], abs=1e-4 if dtype == torch.float32 else 1e-11
    )


@BOTH
def test_boxes_that_fail_are_told_apart(on):
    a = torch.eye(4, dtype=torch.float64).repeat(5, 1, 1)
    a[1, 2, 2], a[4, 0, 0] = -1.0, -1.0
    assert on.factorize(a.clone(), "cholesky").info.tolist() == [0, 3, 0, 0, 1]
    a[1, 2, 2] = 0.0
    assert on.factorize(a.clone(), "lu").info.tolist() == [0, 3, 0, 0, 0]
    a[1, 2, 2] = a[4, 0, 0] = math.nan
    for method in ("cholesky", "lu"):
        assert on.factorize(a.clone(), method).info.tolist() == [0, 3, 0, 0, 1]


PAIRS = torch.tensor([[i, i] for i in range(6)] + [[i, j] for i in range(6) for j in range(i) if (i + j) % 3])


def multiplied(on, blocks, x, y, own):
    lower, upper = torch.zeros_like(x), torch.zeros_like(x)
    on.multiply_pairs(blocks, PAIRS, x, y, lower, upper, own)
    return lower, upper


@BOTH
@KINDS
@pytest.mark.parametrize("sides", [1, 3])
@pytest.mark.parametrize("own", [0, 6])
def test_pairs_are_multiplied_as_both_halves_of_the_matrix(on, dtype, sides, own):
    blocks, x, y = (
        normal(*shape, seed=s, dtype=dtype) for s, shape in enumerate([(len(PAIRS), 5, 5), *[(6, 5, sides)] * 2])
    )
    half = assembled(blocks[own:].double(), PAIRS[own:], 6, mirrored=False)
    strict = half - torch.block_diag(*blocks[:6].double()) if own == 0 else half
    exact = [(a @ b.double().flatten(0, 1)).reshape(x.shape) for a, b in ((half, x), (strict.mT, y))]
    for ours, wanted in zip(multiplied(on, blocks, x, y, own), exact, strict=True):
        close(ours, wanted)
    both = x.clone()
    on.multiply_pairs(blocks, PAIRS, x, y, both, both, own)
    close(both, x.double() + sum(exact))
    few = torch.zeros_like(x[:4])
    on.multiply_pairs(blocks, PAIRS, x, y, few, torch.zeros_like(few), own)
    close(few, exact[0][:4])


@pytest.mark.parametrize("sides", [1, 3])
@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="one core")
def test_pairs_give_the_same_bits_on_any_number_of_threads(monkeypatch, sides):
    monkeypatch.setattr(pairs, "PRODUCT_BYTES", 0)  # several rounds, of other lengths on two threads
    blocks, x = normal(len(PAIRS), 5, 5), normal(6, 5, sides, seed=1)
    used, results = numba.get_num_threads(), []
    for threads in (1, 2):
        numba.set_num_threads(threads)
        results.append(torch.stack(multiplied(compiled, blocks, x, x, 0)))
    numba.set_num_threads(used)
    assert torch.equal(*results)


@BOTH
@KINDS
def test_blocks_are_projected_on_the_bases_of_their_boxes(on, dtype):
    blocks, bases = normal(len(PAIRS), 5, 5, dtype=dtype), normal(6, 5, 3, seed=1, dtype=dtype)
    i, j = PAIRS.T
    close(on.project(blocks, PAIRS, bases), bases[i].mT.double() @ blocks.double() @ bases[j].double())
    assert on.project(blocks[:0], PAIRS[:0], bases).shape == (0, 3, 3)


@BOTH
@KINDS
@pytest.mark.parametrize("complement", [0, 4])
def test_lifts_differ_from_the_skeleton_by_complements(on, dtype, complement):
    T, N = normal(2, complement, 3, dtype=dtype), normal(2, complement, 3, seed=1, dtype=dtype)
    order = torch.stack([torch.randperm(3 + complement, generator=torch.Generator().manual_seed(s)) for s in (0, 1)])
    ordered = torch.cat([torch.eye(3) + T.mT.double() @ N.double(), -N.double()], dim=1)
    ours = on.lifts(T, N, order)
    close(ours.gather(1, order[:, :, None].expand_as(ours)), ordered)


@BOTH
@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
def test_products_are_subtracted_in_place(on, transpose_a, transpose_b):
    a, b, c = normal(3, 4, 4), normal(3, 4, 4, seed=1), normal(3, 4, 4, seed=2)
    exact = c - (a.mT if transpose_a else a) @ (b.mT if transpose_b else b)
    on.subtract_product(c, a, b, transpose_a=transpose_a, transpose_b=transpose_b)
    close(c, exact)


@BOTH
def test_rows_and_columns_are_taken_and_blocks_put(on):
    blocks, rows, columns = normal(2, 4, 4), torch.tensor([[3, 1, 0], [2, 0, 1]]), torch.tensor([[0, 2], [3, 1]])
    taken = torch.stack([block[i][:, j] for block, i, j in zip(blocks, rows, columns, strict=True)])
    assert torch.equal(on.take(blocks, rows, columns), taken)
    out, at = torch.zeros(3, 2, 4, 2, 4, dtype=torch.float64), (np.array([2, 0]), np.array([1, 0]), np.array([0, 1]))
    on.put_blocks(out, at, blocks.mT)
    assert torch.equal(out[2, 1, :, 0], blocks[0].mT)
    assert torch.equal(out[0, 0, :, 1], blocks[1].mT)
    assert int((out != 0).sum()) == blocks.numel()


def decaying_rows(boxes, size, columns, dtype=torch.float64, ratio=0.3):
    """Rows whose singular values fall like a geometric series."""
    decay = ratio ** torch.arange(min(size, columns), dtype=torch.float64)
    left = torch.linalg.qr(normal(boxes, size, len(decay)))[0]
    return ((left * decay) @ torch.linalg.qr(normal(boxes, columns, len(decay), seed=1))[0].mT).to(dtype)


def interpolated(rows, order, T):
    """Rows in the given order, and what the first of them make of the others."""
    ordered = rows.gather(1, order[:, :, None].expand_as(rows))
    rank = T.shape[2]
    return T @ ordered[:, :rank], ordered[:, rank:]


@BOTH
@KINDS
def test_interpolation_reproduces_the_rows_to_the_tolerance(on, dtype):
    rows = decaying_rows(4, 20, 16, dtype)
    ranks = []
    for tolerance in (1e-1, 1e-3, 1e-5):
        order, T = on.interpolate(rows.clone(), 14, tolerance)
        assert torch.equal(order.sort(dim=1).values, torch.arange(20).expand(4, -1))
        made, exact = interpolated(rows, order, T)
        assert biggest(made - exact) < 10 * tolerance * biggest(rows)
        ranks.append(T.shape[2])
    assert ranks[0] < ranks[1] < ranks[2] < 14


@BOTH
def test_the_rank_is_capped_and_the_first_row_is_the_longest(on):
    rows = decaying_rows(3, 12, 9)
    order, T = on.interpolate(rows.clone(), 4, 0.0)
    assert T.shape == (3, 8, 4)
    assert torch.equal(order[:, 0], rows.norm(dim=2).argmax(dim=1))


@BOTH
def test_all_rows_need_no_interpolation(on):
    order, T = on.interpolate(normal(3, 5, 9), 5, 0.0)
    assert T.shape == (3, 0, 5)
    assert torch.equal(order.sort(dim=1).values, torch.arange(5).expand(3, -1))


@BOTH
@KINDS
def test_boxes_of_less_rank_than_others_and_of_none_stay_finite(on, dtype):
    """The rank is common to all boxes: one of rank 2 and one of zeros beside one of full rank."""
    rows = normal(3, 10, 12, dtype=dtype)
    rows[1] = normal(10, 2, dtype=dtype) @ normal(2, 12, seed=1, dtype=dtype)
    rows[2] = 0.0
    order, T = on.interpolate(rows.clone(), 6, 1e-6)
    assert T.shape == (3, 4, 6)
    assert T.isfinite().all()
    assert not T[2].any()
    made, exact = interpolated(rows[1:], order[1:], T[1:])
    assert biggest(made - exact) < 30 * PRECISION[dtype] * biggest(rows[1])
    _, T = on.interpolate(torch.zeros(2, 4, 6, dtype=dtype), 3, 0.0)
    assert T.shape[2] == 1 or T.isfinite().all()


@KINDS
def test_both_executors_interpolate_alike(dtype):
    """The sketch is overwritten, so each gets its own."""
    rows = decaying_rows(5, 24, 20, dtype, ratio=0.7)
    (order, T), (other_order, other_T) = (on.interpolate(rows.clone(), 12, 0.0) for on in (compiled, eager))
    assert torch.equal(order, other_order)
    assert relative_error(other_T, T) < 1e3 * PRECISION[dtype]

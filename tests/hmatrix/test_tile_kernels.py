import numpy as np
import pytest
import torch

from kinji.hmatrix.tile_kernels import (
    FlopCount,
    cholesky,
    gram,
    lower_times_orthonormal,
    multiply,
    multiply_blocks,
    orthonormal_rows,
    solve_lower,
    solve_upper,
    svd,
)

SIZES = [1, 63, 64, 128, 200, 300]


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def positive_definite(size):
    a = random(size, size)
    return a @ a.mT + size * torch.eye(size, dtype=torch.float64)


def identity_error(rows):
    return float((rows @ rows.mT - torch.eye(len(rows), dtype=torch.float64)).abs().max())


@pytest.mark.parametrize("size", SIZES)
def test_cholesky_reads_the_lower_triangle_and_returns_one(size):
    a, flops = positive_definite(size), FlopCount()
    factor, failed = cholesky(a.tril() + 7.0 * a.triu(1), flops)
    assert failed == 0
    torch.testing.assert_close(factor, torch.linalg.cholesky(a), rtol=1e-12, atol=1e-12)
    assert flops.total == pytest.approx(size**3 / 3)


@pytest.mark.parametrize("pivot", [1, 64, 129, 300])
def test_cholesky_names_the_first_pivot_that_fails(pivot):
    a = positive_definite(300)
    a[pivot - 1, pivot - 1] = -1.0
    assert cholesky(a, FlopCount())[1] == pivot


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [0, 5, 40])
def test_triangular_solves_undo_the_products(size, count):
    factor, rows, flops = torch.linalg.cholesky(positive_definite(size)), random(count, size), FlopCount()
    given = rows.clone()
    torch.testing.assert_close(solve_lower(factor, rows, flops) @ factor.mT, rows, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(solve_upper(factor, rows, flops) @ factor, rows, rtol=1e-10, atol=1e-12)
    assert torch.equal(rows, given)
    assert flops.total == 2 * size * size * count


def test_products_are_counted():
    a, b, flops = random(7, 11), random(11, 5), FlopCount()
    torch.testing.assert_close(multiply(a, b, flops), a @ b)
    assert flops.total == 2 * 7 * 11 * 5
    torch.testing.assert_close(gram(a, flops), a @ a.mT)
    assert flops.total == 2 * 7 * 11 * 5 + 7 * 7 * 11


@pytest.mark.parametrize("transpose", [False, True])
def test_a_block_diagonal_is_multiplied_with_from_both_sides(transpose):
    sizes, first, flops = np.array([[3, 5], [4, 1], [2, 2]]), np.array([10, 2, 30]), FlopCount()
    stored = random(40)
    blocks = [stored[at : at + m * n].view(m, n) for at, (m, n) in zip(first, sizes, strict=True)]
    dense = torch.block_diag(*blocks)
    dense = dense.mT if transpose else dense
    columns = random(dense.shape[1], 6)
    torch.testing.assert_close(
        multiply_blocks(stored, first, sizes, columns, flops, transpose=transpose), dense @ columns
    )
    assert flops.total == 2 * (15 + 4 + 4) * 6


@pytest.mark.parametrize("decay", [1.0, 0.5, 0.1])
def test_graded_rows_are_factorized_to_machine_precision(decay):
    rows = decay ** torch.arange(40.0, dtype=torch.float64)[:, None] * random(40, 200)
    lower, basis = lower_times_orthonormal(rows, FlopCount())
    assert identity_error(basis) < 1e-12
    assert torch.equal(lower, lower.tril())
    assert float(((lower @ basis - rows).norm(dim=1) / rows.norm(dim=1)).max()) < 1e-13


@pytest.mark.parametrize("flaw", ["dependent", "zero"])
def test_dependent_rows_are_factorized_too(flaw):
    rows = random(40, 200)
    rows[7] = rows[3] + 1e-9 * rows[5] if flaw == "dependent" else 0.0
    lower, basis = lower_times_orthonormal(rows, FlopCount())
    assert identity_error(basis) < 1e-12
    torch.testing.assert_close(lower @ basis, rows, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rank", [0, 3, 40])
def test_the_rows_of_a_sample_are_spanned_even_if_dependent(rank):
    sample = random(40, rank) @ random(rank, 200, seed=1)
    basis = orthonormal_rows(sample.clone(), torch.inf, FlopCount())
    assert identity_error(basis) < 1e-12
    torch.testing.assert_close(sample @ basis.mT @ basis, sample, rtol=0, atol=1e-11)


def test_a_sample_that_misses_a_part_is_refused():
    values = 0.5 ** torch.arange(200.0, dtype=torch.float64)
    spectrum = torch.linalg.qr(random(200, 200))[0] * values
    assert orthonormal_rows(random(10, 200) @ spectrum.mT, 1e-6, FlopCount()) is None
    assert orthonormal_rows(random(40, 200) @ spectrum.mT, 1e-6, FlopCount()) is not None


def test_singular_values_come_with_both_sets_of_vectors():
    a, flops = random(20, 20), FlopCount()
    u, s, vt = svd(a, flops)
    torch.testing.assert_close(u * s @ vt, a)
    assert flops.total == 21 * 20**3

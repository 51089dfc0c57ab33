"""Damped inverses against dense ones."""

import numpy as np
import pytest
import torch

from kinji.kfac.inverse import (
    damped_cholesky,
    damping_shifts,
    precondition,
    precondition_unit_wise,
    unit_wise_inverse,
)


def identity(n: int) -> torch.Tensor:
    return torch.eye(n, dtype=torch.float64)


def gram(n: int, samples: int, seed: int) -> torch.Tensor:
    x = torch.randn(n, samples, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x @ x.T / samples


def test_shifts_balance_the_mean_eigenvalues_and_multiply_to_the_damping():
    a, g = gram(7, 20, 0), 1e-3 * gram(4, 20, 1)
    shift_a, shift_g = damping_shifts(a, g, 0.04)
    means = [torch.linalg.eigvalsh(factor).mean() for factor in (a, g)]
    torch.testing.assert_close(shift_a * shift_g, torch.tensor(0.04, dtype=torch.float64))
    torch.testing.assert_close(shift_a / means[0], shift_g / means[1])


def test_silent_layer_gets_equal_shifts():
    a, silent = gram(3, 9, 0), torch.zeros(2, 2, dtype=torch.float64)
    assert [shift.item() for shift in damping_shifts(a, silent, 0.04)] == pytest.approx([0.2, 0.2])


def test_preconditioning_is_the_inverse_of_the_damped_kronecker_product():
    a, g, gradient = gram(6, 4, 2), gram(5, 3, 3), torch.randn(5, 6, dtype=torch.float64)
    shift_a, shift_g = damping_shifts(a, g, 1e-3)
    lowers = [damped_cholesky(f, s, "", torch.empty_like(f)) for f, s in ((a, shift_a), (g, shift_g))]
    dense = torch.kron(g + shift_g * identity(5), a + shift_a * identity(6))
    reference = torch.linalg.solve(dense, gradient.flatten()).view(5, 6)
    torch.testing.assert_close(precondition(gradient, *lowers), reference, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("by_columns", [True, False])
def test_cholesky_factor_is_left_in_the_memory_given_and_the_factor_unharmed(by_columns):
    factor, shift = gram(4, 9, 6), torch.tensor(0.1, dtype=torch.float64)
    memory, before = torch.empty(4, 4, dtype=torch.float64), factor.clone()
    lower = damped_cholesky(factor, shift, "", memory.T if by_columns else memory)
    torch.testing.assert_close(lower @ lower.T, factor + shift * identity(4))
    assert lower.data_ptr() == memory.data_ptr() and torch.equal(factor, before)
    upper_alone = damped_cholesky(factor.triu(), shift, "", torch.empty_like(factor))
    assert torch.equal(upper_alone, lower)


def test_indefinite_factor_gets_more_damping_and_a_warning_that_names_it():
    indefinite = torch.diag(torch.tensor([1.0, -0.5, 2.0]))
    with pytest.warns(UserWarning, match="conv3: factor A is indefinite"):
        lower = damped_cholesky(indefinite, torch.tensor(1e-4), "conv3: factor A", torch.empty(3, 3))
    assert torch.isfinite(lower).all()
    assert (lower @ lower.T - indefinite).diagonal().min() > 0.5


def test_non_finite_factor_is_refused_by_name():
    broken = identity(3)
    broken[1, 1] = torch.nan
    with pytest.raises(np.linalg.LinAlgError, match="fc: factor G is not finite"):
        damped_cholesky(broken, torch.tensor(0.1), "fc: factor G", torch.empty_like(broken))


@pytest.mark.parametrize("damping", [1e-1, 1e-6])
def test_unit_wise_inverse_is_the_inverse_of_the_masked_dense_matrix(damping):
    gradients = torch.randn(10, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    full = gradients.T @ gradients / 10  # ordered (scale_1, shift_1, scale_2, shift_2, ...)
    masked = full * torch.kron(identity(4), torch.ones(2, 2)) + damping * identity(8)
    blocks = torch.stack([full.diagonal()[0::2], full.diagonal(1)[0::2], full.diagonal()[1::2]])
    scale, shift = torch.randn(2, 4, dtype=torch.float64)
    ours = precondition_unit_wise(scale, shift, unit_wise_inverse(blocks, damping, "bn"))
    reference = torch.linalg.solve(masked, torch.stack([scale, shift], dim=1).flatten()).view(4, 2)
    torch.testing.assert_close(torch.stack(ours, dim=1), reference, rtol=1e-10, atol=1e-10)


def test_perfectly_correlated_channels_stay_positive_in_single_precision():
    scale, shift = 1e3 * torch.rand(2, 100, generator=torch.Generator().manual_seed(8))
    correlated = torch.stack([scale * scale, scale * shift, shift * shift])  # determinants are rounding errors
    inverse = unit_wise_inverse(correlated, 1e-4, "bn")
    assert (inverse[0] > 0).all() and (inverse[2] > 0).all()


def test_singular_channel_without_damping_is_refused_by_name():
    with pytest.raises(np.linalg.LinAlgError, match="bn1"):
        unit_wise_inverse(torch.ones(3, 1), 0.0, "bn1")

"""Damped inverses against dense ones, and what happens to factors that have none."""

import pytest
import torch
from torch import nn

from kinji.kfac import blocked_cholesky, cholesky, triangle
from kinji.kfac.blocks import fisher_blocks
from kinji.kfac.cholesky import mend, prepare, solve, telling
from kinji.kfac.inverse import (
    damping_shifts,
    eigen_form,
    precondition,
    precondition_eigen,
    precondition_unit_wise,
    unit_wise_inverse,
)

from .triangles import lower_alone


def identity(n: int) -> torch.Tensor:
    return torch.eye(n, dtype=torch.float64)


def gram(n: int, samples: int, seed: int, groups: tuple[int, ...] = ()) -> torch.Tensor:
    x = torch.randn(*groups, n, samples, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x @ x.mT / samples


def prepared(factor: torch.Tensor, shift: torch.Tensor, name: str = "") -> torch.Tensor:
    out = torch.full_like(factor, torch.nan)
    kept = lower_alone(factor)
    if not prepare(kept, shift, out):
        mend(kept, shift, name, out)
    return out


@pytest.fixture
def small_blocks(monkeypatch):
    """Factors of a few rows take the path of those of thousands."""
    monkeypatch.setattr(blocked_cholesky, "INVERTED", 3)
    monkeypatch.setattr(blocked_cholesky, "BLOCK", 4)
    monkeypatch.setattr(triangle, "PANEL", 4)


def test_shifts_balance_the_mean_eigenvalues_and_multiply_to_the_damping():
    a, g = gram(7, 20, 0), 1e-3 * gram(4, 20, 1)
    shift_a, shift_g = damping_shifts(a, g, 0.04)
    means = [torch.linalg.eigvalsh(factor).mean() for factor in (a, g)]
    torch.testing.assert_close(shift_a * shift_g, torch.tensor(0.04, dtype=torch.float64))
    torch.testing.assert_close(shift_a / means[0], shift_g / means[1])
    torch.testing.assert_close((shift_a / shift_g).sqrt(), (means[0] / means[1]).sqrt())


def test_silent_layer_gets_equal_shifts():
    a, silent = gram(3, 9, 0), torch.zeros(2, 2, dtype=torch.float64)
    assert [shift.item() for shift in damping_shifts(a, silent, 0.04)] == pytest.approx([0.2, 0.2])


@pytest.mark.parametrize("groups", [(), (3,)])
def test_preconditioning_is_the_inverse_of_the_damped_kronecker_product(groups):
    a, g = gram(6, 4, 2, groups), gram(5, 3, 3, groups)
    gradient = torch.randn(*groups, 5, 6, dtype=torch.float64)
    shift_a, shift_g = damping_shifts(a, g, 1e-3)
    ours = precondition(gradient, prepared(a, shift_a), prepared(g, shift_g))
    for k in range(max(1, *groups, 1)):
        at = (k,) if groups else ()
        dense = torch.kron(g[at] + shift_g[at] * identity(5), a[at] + shift_a[at] * identity(6))
        reference = torch.linalg.solve(dense, gradient[at].flatten()).view(5, 6)
        torch.testing.assert_close(ours[at], reference, rtol=1e-10, atol=1e-12)


def test_eigenvalue_form_is_the_inverse_of_the_kronecker_product_damped_as_a_whole():
    a, g, gradient = gram(6, 4, 2), gram(5, 3, 3), torch.randn(5, 6, dtype=torch.float64)
    damping = torch.tensor(1e-3, dtype=torch.float64)
    lower_a, lower_g = (factor + torch.ones_like(factor).triu(1) for factor in (a, g))  # NaN would be tried again
    ours = precondition_eigen(gradient, eigen_form(lower_a, ""), eigen_form(lower_g, ""), damping)
    dense = torch.kron(g, a) + 1e-3 * identity(30)
    reference = torch.linalg.solve(dense, gradient.flatten()).view(5, 6)
    torch.testing.assert_close(ours, reference, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("n", [1, 3, 4, 5, 8, 11])
@pytest.mark.parametrize("groups", [(), (2,)])
def test_factors_in_blocks_solve_like_dense_ones(small_blocks, n, groups):
    factor, shift = gram(n, n, n, groups), torch.full(groups, 0.1, dtype=torch.float64)
    right = torch.randn(*groups, n, 3, dtype=torch.float64)
    out = torch.full_like(factor, torch.nan)
    assert prepare(lower_alone(factor), shift, out)
    reference = torch.linalg.solve(factor + 0.1 * identity(n), right)
    torch.testing.assert_close(solve(out, right), reference, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(solve(telling(out), right), reference, rtol=1e-10, atol=1e-12)
    assert telling(out).isfinite().all()


@pytest.mark.parametrize("groups", [(), (2,)])
def test_what_a_gpu_does_reads_the_lower_triangle_and_checks_itself(groups):
    """Its two steps, on a CPU."""
    factor, shift = gram(7, 5, 3, groups), torch.full(groups, 0.1, dtype=torch.float64)
    damped = factor + 0.1 * identity(7)
    inverse = lower_alone(damped)
    assert cholesky._invert(inverse)
    torch.testing.assert_close(inverse, torch.linalg.inv(damped), rtol=1e-10, atol=1e-12)
    assert cholesky._inverts(lower_alone(factor), shift, inverse)
    assert not cholesky._inverts(lower_alone(factor), shift, 1.1 * inverse)
    assert not cholesky._invert(lower_alone(factor - identity(7)))


@pytest.mark.parametrize("n", [3, 700])
def test_single_precision_is_tried_again_in_double(n, recwarn):
    """The damping is lost in single precision, where the damped factor is singular."""
    ones = torch.ones(n, n)
    inverse = solve(prepared(ones, torch.tensor(1e-8)), torch.eye(n))
    assert not recwarn.list and inverse.isfinite().all()
    reference = torch.linalg.inv(ones.double() + 1e-8 * identity(n)).float()
    assert (inverse - reference).norm() < 1e-2 * reference.norm()


def test_indefinite_factor_gets_more_damping_and_a_warning_that_names_it():
    indefinite = torch.diag(torch.tensor([1.0, -0.5, 2.0]))
    with pytest.warns(UserWarning, match="conv3: factor A is indefinite"):
        inverse = prepared(indefinite, torch.tensor(1e-4), "conv3: factor A")
    assert torch.linalg.eigvalsh(inverse).min() > 0


def test_non_finite_factor_is_refused_by_name():
    broken = identity(3)
    broken[1, 1] = torch.nan
    with pytest.raises(torch.linalg.LinAlgError, match="fc: factor G is not finite"):
        prepared(broken, torch.tensor(0.1, dtype=torch.float64), "fc: factor G")
    with pytest.raises(torch.linalg.LinAlgError, match="fc is not finite"):
        eigen_form(broken, "fc")


@pytest.mark.parametrize("damping", [1e-1, 1e-6])
def test_unit_wise_inverse_is_the_inverse_of_the_masked_dense_matrix(damping):
    gradients = torch.randn(10, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    full = gradients.T @ gradients / 10  # ordered (scale_1, shift_1, scale_2, shift_2, ...)
    masked = full * torch.kron(identity(4), torch.ones(2, 2)) + damping * identity(8)
    blocks = torch.stack([full.diagonal()[0::2], full.diagonal(1)[0::2], full.diagonal()[1::2]])
    scale, shift = torch.randn(2, 4, dtype=torch.float64)
    ours = precondition_unit_wise(scale, shift, unit_wise_inverse(blocks, damping))
    reference = torch.linalg.solve(masked, torch.stack([scale, shift], dim=1).flatten()).view(4, 2)
    torch.testing.assert_close(torch.stack(ours, dim=1), reference, rtol=1e-10, atol=1e-10)


def test_perfectly_correlated_channels_stay_positive_in_single_precision():
    scale, shift = 1e3 * torch.rand(2, 100, generator=torch.Generator().manual_seed(8))
    correlated = torch.stack([scale * scale, scale * shift, shift * shift])  # determinants are rounding errors
    inverse = unit_wise_inverse(correlated, 1e-4)
    assert (inverse[0] > 0).all() and (inverse[2] > 0).all()


def test_singular_channel_without_damping_is_refused_by_name():
    (block,) = fisher_blocks(nn.Sequential(nn.BatchNorm1d(4)))
    singular, memory = [torch.ones(3, 4)], block.new_inverse()
    assert not block.invert(singular, 0.0, memory)
    with pytest.raises(torch.linalg.LinAlgError, match=r"0: the damped block has no inverse; damping is 0\.0"):
        block.mend(singular, 0.0, memory)
    assert block.invert(singular, 1e-3, memory)

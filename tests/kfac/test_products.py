"""Products in single precision, whatever path they take, against double precision."""

import pytest
import torch

from kinji.kfac import products
from kinji.kfac.products import add_gram, times_transposed


def close(ours: torch.Tensor, reference: torch.Tensor) -> bool:
    return bool((ours.double() - reference).norm() <= 1e-6 * reference.norm())


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(("n", "k", "m"), [(130, 200, 96), (95, 200, 300), (97, 1, 120), (1, 5, 3), (4, 0, 3)])
def test_every_layout_of_operands(n, k, m, fast, monkeypatch):
    if not fast:
        monkeypatch.setattr(products, "onednn_is_faster", lambda: False)
    torch.manual_seed(0)
    x, y, larger = torch.randn(n, k), torch.randn(m, k), torch.randn(m + 7, k + 9)
    reference = x.double() @ y.double().T
    for left in (x, x.T.contiguous().T):
        for right in (y, y.T.contiguous().T):
            assert close(times_transposed(left, right), reference)
    assert close(
        times_transposed(x, larger[3 : m + 3, 5 : k + 5]), x.double() @ larger[3 : m + 3, 5 : k + 5].double().T
    )


@pytest.mark.parametrize("by_columns", [False, True])
@pytest.mark.parametrize("shape", [(1, 9), (5, 9), (20, 7), (300, 2), (3, 6, 8)])
def test_lower_triangles_of_gram_matrices_add_up(shape, by_columns):
    *groups, n, k = shape
    x = torch.randn(*groups, k, n).double().mT if by_columns else torch.randn(*shape).double()
    sums = torch.full((*shape[:-1], shape[-2]), torch.nan, dtype=torch.float64)
    add_gram(x, sums, scale=0.5, fresh=True)
    torch.testing.assert_close(sums.tril(), (0.5 * x @ x.mT).tril())
    add_gram(x, sums, scale=2, fresh=False)
    torch.testing.assert_close(sums.tril(), (2.5 * x @ x.mT).tril())

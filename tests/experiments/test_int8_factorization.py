import numba
import numpy as np
import pandas as pd
import pytest
import torch

from kinji.experiments.cases import Int8DgemmCase
from kinji.experiments.context import Context, Progress
from kinji.experiments.int8_dgemm import factorization
from kinji.experiments.int8_dgemm.factorization import FAMILIES, SIDES, compare_factorizations
from kinji.experiments.int8_dgemm.sides import Side

CPU = torch.device("cpu")
CASE = Int8DgemmCase(n=150, conditions=(1e2, 1e7, 1e13), seed=0)
SYMMETRIC = [family for family in FAMILIES if family.factorization == "cholesky"]
by_name = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def observe(case=CASE):
    context = Context("cpu", numba.get_num_threads(), Progress("test"))
    return pd.DataFrame(compare_factorizations(case, context, CPU))


@pytest.fixture(scope="module")
def table():
    return observe()


@pytest.mark.parametrize("condition", [1e2, 1e8, 1e13])
@by_name
def test_matrices_have_the_condition_asked_for(family, condition):
    a = family.make(150, condition, 0)
    assert float(torch.linalg.cond(a)) == pytest.approx(condition, rel=0.25)
    assert torch.equal(a, family.make(150, condition, 0))
    assert a.shape == (150, 150)


@pytest.mark.parametrize("family", SYMMETRIC, ids=lambda family: family.name)
def test_matrices_for_cholesky_are_symmetric_and_positive_definite(family):
    a = family.make(70, 1e10, 3)
    assert torch.equal(a, a.T)
    assert torch.linalg.eigvalsh(a).min() > 0


def test_the_spectrum_is_geometric():
    expected = np.geomspace(1, 1e-6, 40)
    eigenvalues = torch.linalg.eigvalsh(factorization.spectrum_matrix(40, 1e6, 0)).flip(0)
    np.testing.assert_allclose(eigenvalues, expected, rtol=1e-8)
    np.testing.assert_allclose(torch.linalg.svdvals(factorization.general_matrix(40, 1e6, 0)), expected, rtol=1e-8)


def test_the_seed_turns_the_matrices_with_orthogonal_factors():
    for make in (factorization.spectrum_matrix, factorization.general_matrix):
        assert not torch.equal(make(20, 1e3, 0), make(20, 1e3, 1))


def test_the_cauchy_matrix_is_one_scaled_to_a_unit_diagonal():
    a = factorization.cauchy_matrix(12, 1e6).numpy()
    x = np.exp(np.pi**2 / np.log(4e6) * np.arange(12))
    cauchy = 1 / (x[:, None] + x)
    np.testing.assert_allclose(a, cauchy / np.sqrt(np.outer(cauchy.diagonal(), cauchy.diagonal())), rtol=1e-13)


def test_the_gaussian_matrix_is_the_kernel_of_grid_points():
    a = factorization.gaussian_matrix(12, 1e4).numpy()
    points = np.array([(i // 4, i % 4) for i in range(12)])
    squares = ((points[:, None] - points) ** 2).sum(-1)
    np.testing.assert_allclose(np.log(a), squares * np.log(a[0, 1]), rtol=1e-12)


def test_one_int8_product_rounds_each_operand_to_half_a_step():
    a = torch.from_numpy(np.random.default_rng(0).standard_normal((9, 20)))
    a[3] = 0
    identity, step_M1 = torch.eye(20, dtype=torch.float64), a.abs().amax(1, keepdim=True) / 127
    for product in (factorization.multiply_rounded(a, identity), factorization.multiply_rounded(identity, a.T).T):
        error = (product - a).abs()
        assert (error <= 0.5000001 * step_M1).all()
        assert (error.amax(1, keepdim=True) >= 0.4 * step_M1).all()


def test_int8_products_of_integers_are_exact():
    a = torch.randint(-127, 128, (6, 30), generator=torch.Generator().manual_seed(0)).double()
    a[:, 0] = 127
    assert torch.equal(factorization.multiply_rounded(a, a.T), a @ a.T)


def test_each_method_meets_each_matrix(table):
    assert len(table) == len(FAMILIES) * len(CASE.conditions) * len(SIDES)
    assert not table.duplicated(["matrix", "target_condition", "method", "count"]).any()
    assert (table.quantity == "factorization").all()
    np.testing.assert_allclose(table.condition, table.target_condition, rtol=0.25)


def threads():
    return numba.get_num_threads(), torch.get_num_threads()


@pytest.fixture
def all_threads():
    before, count = threads(), numba.config.NUMBA_NUM_THREADS
    numba.set_num_threads(count)
    torch.set_num_threads(count)
    yield count, count
    numba.set_num_threads(before[0])
    torch.set_num_threads(before[1])


def test_rows_come_out_the_same_twice(table):
    pd.testing.assert_frame_equal(table, observe())


def test_matrices_and_products_are_computed_on_one_thread(monkeypatch, all_threads):
    seen = []

    def make(*case):
        seen.append(threads())
        return factorization.spectrum_matrix(*case)

    def multiply(a, b):
        seen.append(threads())
        return a @ b

    monkeypatch.setattr(factorization, "FAMILIES", (factorization.Family("watched", make),))
    monkeypatch.setattr(factorization, "SIDES", (Side("watched", 0, multiply),))
    observe()
    assert set(seen) == {(1, 1)}
    assert threads() == all_threads


def test_what_broke_down_has_no_error_and_all_else_has(table):
    errors = table[["backward_error", "forward_error"]]
    assert errors[table.broke_down].isna().all(axis=None)
    assert errors[~table.broke_down].notna().all(axis=None)


def test_low_precision_breaks_down_where_the_condition_is_high(table):
    cholesky = table[table.factorization == "cholesky"]
    broke_down = cholesky.groupby(["method", "count", "target_condition"]).broke_down
    for method, survives in {("int8", 0): 1e2, ("fp32", 0): 1e7, ("scheme_two", 8): 1e7}.items():
        assert not broke_down.any()[*method, survives]
        assert broke_down.all()[*method, 1e13]
    assert not cholesky.broke_down[cholesky.method.isin(["native", "scheme_one"])].any()
    assert not cholesky.broke_down[cholesky["count"] == 15].any()


def test_emulated_products_err_like_native_ones_and_low_precision_more(table):
    errors = table.set_index(["matrix", "target_condition", "method", "count"]).backward_error.unstack([2, 3])
    native = errors["native", 0]
    assert (errors["scheme_one", 9] < 1.1 * native).all()
    assert (errors["scheme_two", 15] < 1.1 * native).all()
    for worse, better in (
        [("scheme_two", 8), ("native", 0)],
        [("fp32", 0), ("scheme_two", 8)],
        [("int8", 0), ("fp32", 0)],
    ):
        assert (errors[worse] / errors[better]).min() > 4


def test_the_solution_is_that_of_the_factors(table):
    whole = table[~table.broke_down & (table.target_condition * table.backward_error < 0.1)]
    amplified = whole.forward_error / (whole.condition * whole.backward_error)
    assert (amplified < 10).all()
    assert (amplified > 1e-4).all()


@pytest.mark.parametrize("factor", [1 + 1e-10, 1 + 1e-6])
def test_the_error_is_that_of_the_product_it_stands_beside(monkeypatch, factor):
    monkeypatch.setattr(factorization, "SIDES", (Side("wrong", 0, lambda a, b: factor * (a @ b)),))
    rows = observe(Int8DgemmCase(n=100, conditions=(1e2,), seed=1))
    assert rows.backward_error.between((factor - 1) / 100, (factor - 1) * 10).all()

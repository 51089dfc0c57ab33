import numba
import numpy as np
import pandas as pd
import pytest
import torch

from kinji.experiments import int8_dgemm
from kinji.experiments.cases import Int8DgemmCase
from kinji.experiments.context import Context, Progress
from kinji.records.metrics import int8_dgemm as metrics
from kinji.records.summaries.int8_dgemm import summarize

CPU = torch.device("cpu")
CASE = Int8DgemmCase(n=96, slices=(4, 5, 6, 8, 9, 10), phi=(0.1, 2.0), repetitions=2)


def observe():
    threads = numba.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(int8_dgemm, "SHORT", 1)  # one call a timing
        patch.setattr(int8_dgemm, "SETTLE_SECONDS", 0)
        rows = list(int8_dgemm.measure(CASE, Context("cpu", threads, Progress("test"))))
    assert numba.get_num_threads() == threads
    return pd.DataFrame(rows).assign(n=CASE.n, seed=CASE.seed, scale="smoke", machine="m", record="r")


@pytest.fixture(scope="module")
def table():
    return observe()


def test_all_but_seconds_come_out_the_same_twice(table):
    pd.testing.assert_frame_equal(table.drop(columns="call_seconds"), observe().drop(columns="call_seconds"))


def test_each_side_is_timed_in_each_repetition(table):
    times = table[table.quantity == "time"]
    assert (times.call_seconds > 0).all()
    counts = times.groupby(["method", "slices"]).repetition.agg(list)
    assert all(repetitions == [0, 1] for repetitions in counts)
    assert set(times.method) == {"torch", "numpy", "int8_product", "scheme_one", "scheme_one_ungrouped"}


def test_errors_fall_with_slices_and_stay_below_their_bounds(table):
    accuracy = table[table.quantity == "accuracy"]
    ours = accuracy[accuracy.method == "scheme_one"]
    assert (ours.error_roundoffs <= ours.bound_roundoffs).all()
    assert metrics.bits_gained_per_slice(table).value == pytest.approx(7, abs=0.7)
    assert metrics.nine_slices_over_dgemm(table).value < 1
    assert metrics.slices_added_by_spread(table).value >= 1


def test_the_error_is_that_of_the_product_it_stands_beside(monkeypatch):
    monkeypatch.setattr(int8_dgemm, "scheme_one", lambda a, b, **_: (a @ b) * (1 + 2.0**-30))
    side = int8_dgemm._scheme_one_side(9)
    a, b = int8_dgemm.exponential_operands(8, 8, 0.1, 0, CPU)
    reference = int8_dgemm.sample_reference(a.numpy(), b.numpy(), samples=50, seed=0)
    observed = int8_dgemm._accuracy(side, a, b, reference)
    assert 2.0**18 < observed["error_roundoffs"] < 2.0**24


def test_bits_are_compared_by_digests_that_can_differ(table):
    assert metrics.reordered_products(table).value == 1
    assert metrics.transformed_products(table).value == 1
    assert metrics.changed_by_grouping(table).value == 0
    identity = table[(table.quantity == "identity") & (table.method == "scheme_one")]
    assert identity[identity.slices == 9].digest.iloc[0] != identity[identity.slices == 8].digest.iloc[0]
    assert metrics._most_digests(table, metrics.NATIVE, metrics.REORDERED).value > 1


def test_every_variation_computes_the_same_product():
    a, b = int8_dgemm.exponential_operands(20, 30, 1.0, 0, CPU)
    for variation, product in int8_dgemm._variations(torch.matmul, a, b, numba.get_num_threads()):
        np.testing.assert_allclose(product, a @ b, rtol=1e-10, atol=1e-13, err_msg=variation)


def test_a_digest_sees_one_bit():
    product = torch.ones(3, 3, dtype=torch.float64)
    changed = product.clone()
    changed[1, 1] += 2.0**-52
    assert int8_dgemm.digest(product) == int8_dgemm.digest(product.T.clone())
    assert int8_dgemm.digest(product) != int8_dgemm.digest(changed)


def test_the_automatic_rule_loses_the_product_and_the_bound_says_so(table):
    rule = table[table.quantity == "automatic_rule"].set_index("mean_lost_bits")
    assert rule.relative_error[1.0] == pytest.approx(1)
    assert rule.bound_relative[1.0] > 1
    assert rule.relative_error[0.0] < 1e-14


def test_the_native_libraries_are_named(table):
    native = table[(table.quantity == "accuracy") & (table.slices == 0)]
    assert (native.blas_kernel.str.len() > 0).all()


def test_phi_spreads_the_exponents():
    narrow, wide = (int8_dgemm.exponential_operands(50, 50, phi, 0, CPU)[0] for phi in (0.1, 4.0))
    assert wide.abs().log2().std() > 2 * narrow.abs().log2().std()


def test_the_summary_has_a_row_for_each_size_and_spread(table):
    summary = summarize(table)
    assert summary[["n", "phi"]].to_numpy().tolist() == [[96, 0.1], [96, 2.0]]
    assert summary.notna().all(axis=None)

import numba
import numpy as np
import pandas as pd
import pytest
import torch

from kinji.errors import KinjiError
from kinji.experiments import int8_dgemm
from kinji.experiments.cases import Int8DgemmCase
from kinji.experiments.context import Context, Progress
from kinji.experiments.int8_dgemm import accuracy, adversarial, identity, operands, sides, timing
from kinji.experiments.int8_dgemm.energy import measure_energy
from kinji.experiments.int8_dgemm.non_finite import _kinds
from kinji.gemm import sample_reference
from kinji.records.metrics import int8_dgemm as metrics
from kinji.records.record import is_machine_dependent
from kinji.records.summaries.int8_dgemm import summarize

CPU = torch.device("cpu")
CASE = Int8DgemmCase(n=96, slices=(4, 5, 6, 8, 9, 10), moduli=(8, 9, 10, 14, 15, 16), phi=(0.1, 2.0), repetitions=2)


def context():
    return Context("cpu", numba.get_num_threads(), Progress("test"))


def observe():
    threads = numba.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "SHORT", 1)  # one call a timing
        patch.setattr(timing, "SETTLE_SECONDS", 0)
        rows = list(int8_dgemm.measure(CASE, context()))
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
    counts = times.groupby(["method", "count"]).repetition.agg(list)
    assert all(repetitions == [0, 1] for repetitions in counts)
    assert set(times.method) == {"torch", "numpy", "int8_product", "scheme_one", "scheme_two", "matmul"}


def test_errors_fall_with_the_count_and_stay_below_their_bounds(table):
    bounded = table[(table.quantity == "accuracy") & table.bound_roundoffs.notna()]
    assert set(bounded.method) == {"torch", "numpy", "scheme_one", "scheme_one_ungrouped", "scheme_two"}
    assert (bounded.error_roundoffs <= bounded.bound_roundoffs).all()
    assert metrics.bits_gained_per_slice(table).value == pytest.approx(7, abs=0.7)
    assert metrics.bits_gained_per_modulus(table).value == pytest.approx(3.85, abs=0.5)
    assert metrics.nine_slices_over_dgemm(table).value < 1
    assert metrics.fifteen_moduli_over_dgemm(table).value < 1
    assert metrics.slices_added_by_spread(table).value >= 1


def test_guarantees_are_kept_and_given(table):
    assert metrics.broken_guarantees(table).value == 0
    assert metrics.refused_to_dgemm(table).value == 0


def test_the_error_is_that_of_the_product_it_stands_beside():
    wrong = sides.Side("scheme_one", 9, lambda a, b: (a @ b) * (1 + 2.0**-30))
    a, b = operands.exponential(8, 8, 0.1, 0, CPU)
    reference = sample_reference(a.numpy(), b.numpy(), samples=50, seed=0)
    observed = accuracy.side_accuracy(wrong, a, b, reference)
    assert 2.0**18 < observed["error_roundoffs"] < 2.0**24


def test_bits_are_compared_by_digests_that_can_differ(table):
    assert metrics.reordered_products(table).value == 1
    assert metrics.transformed_products(table).value == 1
    assert metrics.changed_by_grouping(table).value == 0
    found = table[table.quantity == "identity"]
    for method, count in (("scheme_one", identity.SLICES), ("scheme_two", identity.MODULI)):
        digests = found[found.method == method].set_index("count").digest
        assert set(digests[count]).isdisjoint(digests[count - 1])
    assert metrics._most_digests(table, metrics.NATIVE, metrics.REORDERED).value > 1


def test_every_variation_computes_the_same_product():
    a, b = operands.exponential(20, 30, 1.0, 0, CPU)
    for variation, product in identity.variations(torch.matmul, a, b):
        np.testing.assert_allclose(product, a @ b, rtol=1e-10, atol=1e-13, err_msg=variation)


def test_a_digest_sees_one_bit():
    product = torch.ones(3, 3, dtype=torch.float64)
    changed = product.clone()
    changed[1, 1] += 2.0**-52
    assert sides.digest(product) == sides.digest(product.T.clone())
    assert sides.digest(product) != sides.digest(changed)


def test_the_published_rule_loses_the_product_and_the_bound_says_so(table):
    rows = table[(table.quantity == "adversarial") & (table.input == "hidden_small")]
    rule = rows[rows.chosen_by == "published rule"].set_index("mean_lost_bits")
    assert rule.relative_error[1.0] == pytest.approx(1)
    assert rule.bound_relative[1.0] > 1
    assert rule.relative_error[0.0] < 1e-14
    assert metrics.missed_on_adversarial(table).value == 0
    assert rows[rows.chosen_by == "bound"].refused.all()


def test_what_was_refused_has_no_error():
    a, b = operands.hidden_small(64, 256, 0, CPU)
    *_, (about, product) = adversarial._ways(a, b)
    assert about["chosen_by"] == "bound"
    assert product is None


def test_infinities_and_nans_come_out_as_in_native_products(table):
    rows = table[table.quantity == "non_finite"]
    assert metrics.non_finite_differences(table).value == 0
    assert (rows.special_entries > 96).all()
    kinds = _kinds(torch.tensor([[0.0, torch.nan], [torch.inf, -torch.inf]]))
    assert kinds.unique().numel() == 4


def test_the_native_libraries_are_named(table):
    native = table[(table.quantity == "accuracy") & (table["count"] == 0)]
    assert (native.blas_kernel.str.len() > 0).all()


def test_phi_spreads_the_exponents():
    narrow, wide = (operands.exponential(50, 50, phi, 0, CPU)[0] for phi in (0.1, 4.0))
    assert wide.abs().log2().std() > 2 * narrow.abs().log2().std()


def test_inverse_scalings_leave_the_product():
    a, b = operands.inversely_scaled(6, 40, 0, CPU)
    plain_a, plain_b = operands.exponential(6, 40, 0.5, 0, CPU)
    np.testing.assert_allclose(a @ b, plain_a @ plain_b, rtol=1e-12)


def test_energy_is_read_on_gpus_only():
    with pytest.raises(KinjiError, match="--device cuda"):
        next(measure_energy(Int8DgemmCase(n=8, energy_seconds=1.0), context(), CPU))
    assert is_machine_dependent("call_joules")


def test_the_summary_has_a_row_for_each_size_and_spread(table):
    summary = summarize(table)
    assert summary[["n", "phi"]].to_numpy().tolist() == [[96, 0.1], [96, 2.0]]
    assert summary.notna().all(axis=None)

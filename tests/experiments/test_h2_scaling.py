import numpy as np
import pandas as pd
import pytest
import torch
from numpy.linalg import LinAlgError

from kinji.errors import KinjiError
from kinji.experiments import h2_scaling
from kinji.experiments.cases import H2ScalingCase
from kinji.experiments.context import Context, Progress
from kinji.experiments.h2_scaling import structure, sweeps
from kinji.experiments.h2_scaling.solvers import compress_h2
from kinji.hmatrix.cluster_tree import build_tree
from kinji.hmatrix.h2_ulv import factorize
from kinji.hmatrix.kernels import Kernel, true_product
from kinji.records.metrics import h2_scaling as metrics
from kinji.records.summaries.h2_scaling import summarize

CASE = H2ScalingCase(
    n=1024,
    diagonal="natural",
    leaf=64,
    rank=32,
    samples=300,
    tile=256,
    ablation_ranks=(16, 32, 48),
    sweep_thetas=(0.0, 1.0),
    sweep_diagonals=(1.0, 100.0),
    rank_tolerances=(1e-6,),
    workers=(1, 2),
    structure_leaf=128,
    repetitions=2,
)


def observe(case=CASE):
    rows = list(h2_scaling.measure(case, Context("cpu", torch.get_num_threads(), Progress("test"))))
    return pd.DataFrame(rows).assign(n=case.n, diagonal=case.diagonal, scale="smoke", machine="m", record="r")


@pytest.fixture(scope="module")
def table():
    return observe()


def test_all_but_seconds_come_out_the_same_twice(table):
    seconds = [column for column in table if column.endswith("_seconds")]
    pd.testing.assert_frame_equal(table.drop(columns=seconds), observe().drop(columns=seconds))


def test_both_solvers_are_timed_in_each_repetition(table):
    times = table[table.quantity == "time"]
    assert times.groupby("method").repetition.agg(list).to_dict() == {
        "blr": [0, 1],
        "h2_ulv": [0, 1],
        "h2_ulv_cg": [0, 1],
        "h2_ulv_decoupled": [0, 1],
    }
    assert (times[["construct_seconds", "solve_seconds"]] > 0).all(axis=None)


def test_sweeps_change_what_they_say(table):
    thetas = table[table.quantity == "admissibility"].set_index("swept_theta")
    assert thetas.factor_bytes[0.0] < thetas.factor_bytes[1.0]
    diagonals = table[table.quantity == "diagonal"].set_index("times_natural")
    assert diagonals.relative_error[100.0] < diagonals.relative_error[1.0]
    ranks = table[table.quantity == "rank"].set_index("method").rank_at_tolerance
    assert ranks["hss"] > ranks["h2"]
    (at_tolerance,) = table[table.quantity == "tolerance"].itertuples()
    fixed = table[(table.quantity == "result") & (table.method == "h2_ulv_decoupled")].iloc[0]
    assert at_tolerance.rank_max > fixed.rank_max
    assert at_tolerance.relative_error < 1e-2 * fixed.relative_error
    workers = table[table.quantity == "workers"]
    assert set(zip(workers.part, workers.workers, strict=True)) == {
        (part, count) for part in ("factor", "parallel substitution", "sequential substitution") for count in (1.0, 2.0)
    }


def test_the_blocks_of_each_format_cover_the_lower_triangle_once(table):
    for _, blocks in table[table.quantity == "block"].groupby("method"):
        covered = np.zeros((8, 8), dtype=int)
        for level, row, column in blocks[["level", "row", "column"]].astype(int).to_numpy():
            side = 8 >> level
            covered[row * side : (row + 1) * side, column * side : (column + 1) * side] += 1
        assert (covered[np.tril_indices(8, -1)] == 1).all()


def test_ranks_of_blocks_are_those_of_their_rows_or_of_their_own(table):
    blocks = table[table.quantity == "block"].pivot_table(
        index=["level", "row", "column"], columns="method", values="block_rank"
    )
    assert (blocks.blr2 >= blocks.blr)[blocks.blr.notna()].all()
    assert (blocks.h2 >= blocks.h)[blocks.h.notna()].all()
    assert (blocks.loc[1].hodlr == blocks.loc[1].hss).dropna().all()
    siblings = blocks.loc[3].dropna(subset=["hss", "blr2"]).query("row != column")
    assert (siblings.hss == siblings.blr2).all()  # nested: all other points, however far up
    problem = h2_scaling.build_problem(CASE, "cpu")
    tree = build_tree(problem.points, leaf_size=128)
    block = problem.kernel()(*(problem.points[tree.members[box]] for box in (5, 2)))
    rank = int(blocks.blr[3, 5, 2])
    truncated = torch.linalg.svd(block)
    lost = truncated.S[rank] / truncated.S[0], truncated.S[rank - 1] / truncated.S[0]
    assert lost[0] <= CASE.tolerance < lost[1]


def test_cores_of_a_cpu_are_refused_on_a_gpu():
    with pytest.raises(KinjiError, match=r"workers = \(1, 2\) are cores of a CPU"):
        next(h2_scaling.measure(CASE, Context("cuda", 1, Progress("test"))))


def test_a_variant_that_breaks_down_does_not_end_the_case(monkeypatch):
    def broken(case, problem, method):
        if method == "h2_ulv" and case.n == 512:
            raise LinAlgError("root, box 0: the diagonal block is not positive definite")
        return run(case, problem, method)

    run = h2_scaling.run_h2_ulv
    monkeypatch.setattr(h2_scaling, "run_h2_ulv", broken)
    small = H2ScalingCase(n=512, diagonal="natural", leaf=64, rank=32, samples=200, tile=0, repetitions=1)
    rows = observe(small)
    assert rows[rows.quantity == "failure"].message.str.contains("not positive definite").all()
    assert set(rows[rows.quantity == "result"].method) == {
        "h2_ulv_decoupled",
        "h2_ulv_decoupled_sequential",
        "h2_ulv_cg",
    }


def test_a_point_of_a_sweep_that_breaks_down_does_not_end_it(monkeypatch):
    def broken(case, problem, kernel, rank, fill_ins, *, theta):
        if theta == 0:
            raise LinAlgError("root, box 0: the diagonal block is not positive definite")
        return compress_h2(case, problem, kernel, rank, fill_ins, theta=theta)

    monkeypatch.setattr(sweeps, "compress_h2", broken)
    small = H2ScalingCase(n=512, diagonal="natural", leaf=64, rank=32, samples=200, tile=0, sweep_thetas=(0.0, 2.0))
    problem = h2_scaling.build_problem(small, "cpu")
    failed, done = sweeps.sweep_admissibility(small, Context("cpu", 1, Progress("test")), problem)
    assert failed["quantity"] == "failure" and failed["swept_theta"] == 0 and "positive definite" in failed["message"]
    assert done["swept_theta"] == 2 and 0 < done["relative_error"] < 1


def test_every_result_says_how_hard_the_problem_is(table):
    results = table[table.quantity == "result"].set_index("method")
    variants = {"h2_ulv", "h2_ulv_sequential", "h2_ulv_decoupled", "h2_ulv_decoupled_sequential"}
    assert set(results.index) == {"blr", "h2_ulv_cg"} | variants
    assert (results.condition_number > 20).all()
    assert (results.diagonal_solve_relative_error > 0.1).all()
    assert results.relative_error["blr"] < 1e-5
    assert results.relative_error["h2_ulv"] < 0.1
    assert results.relative_residual["h2_ulv_cg"] < 2 * results.relative_residual["blr"]
    assert 0 < results.kernel_entries["blr"] <= 256 * 256 * 10
    assert results.relative_error["h2_ulv_decoupled"] < results.relative_error["h2_ulv"]


def test_the_metrics_hold_on_a_small_matrix(table):
    assert metrics.share_of_identical_factors(table).value == 1
    assert metrics.fill_in_gain(table).value > 1
    assert metrics.decoupling_gain(table).value > 2
    assert metrics.parallel_over_sequential_error(table).value == pytest.approx(1, abs=0.2)
    assert metrics.most_iterations(table).value < 20


def test_the_summary_has_a_row_for_each_way_to_solve(table):
    summary = summarize(table)
    assert summary.method.tolist() == ["blr", "h2_ulv", "h2_ulv_cg", "h2_ulv_decoupled"]
    assert summary.iterations.notna().tolist() == [False, False, True, False]


def test_the_dominant_diagonal_is_the_published_one_and_trivial():
    case = H2ScalingCase(n=512, diagonal="dominant", leaf=64, rank=32, samples=200, tile=128, repetitions=1)
    results = observe(case)
    results = results[results.quantity == "result"]
    assert (results.diagonal_entry == 1000 * 512**0.5).all()
    assert (results.condition_number < 1.01).all()
    assert metrics.trivial_error(results).value < 1e-4


def test_residuals_are_those_of_the_true_matrix():
    problem = h2_scaling.build_problem(CASE, "cpu")
    wrong = problem.x + 1e-3 * torch.ones_like(problem.x)
    kernel = Kernel(diagonal=problem.diagonal)
    residual = (true_product(kernel, problem.points, wrong) - problem.b).norm() / problem.b.norm()
    judged = h2_scaling.judge(problem, {"exact": problem.x, "wrong": wrong})
    assert judged["exact"]["relative_residual"] < 1e-14
    assert judged["wrong"]["relative_residual"] == pytest.approx(float(residual))
    assert judged["wrong"]["relative_error"] == pytest.approx(float(1e-3 * 32 / problem.x.norm()))


def test_dependent_boxes_would_be_noticed(monkeypatch):
    problem = h2_scaling.build_problem(CASE, "cpu")
    factor = factorize(compress_h2(CASE, problem, problem.kernel(), CASE.rank, "sc22"))
    assert structure.describe_independence(factor, seed=0)["identical"]
    eliminate = structure.eliminate_complements

    def chained(on, blocks, *arguments, **options):
        return eliminate(on, blocks + 1e-9 * blocks.roll(1, dims=0), *arguments, **options)

    monkeypatch.setattr(structure, "eliminate_complements", chained)
    assert not structure.describe_independence(factor, seed=0)["identical"]

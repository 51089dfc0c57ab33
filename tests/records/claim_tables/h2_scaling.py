"""Small tables that support each claim of h2_scaling, and tables that contradict it."""

import pandas as pd

SIZES = (4096, 8192, 16384)


def results(method="h2_ulv", *, diagonal="natural", sizes=SIZES, **columns):
    """Result rows; a column is a number, or a function of n."""
    rows = [{key: value(n) if callable(value) else value for key, value in columns.items()} | {"n": n} for n in sizes]
    return pd.DataFrame(rows).assign(quantity="result", method=method, diagonal=diagonal, levels=3)


def growing(method, column, power):
    settled = results()  # the sizes are read off the rows of H2-ULV
    rows = results(method, **{column: lambda n: 1e-3 * n**power})
    return rows if method == "h2_ulv" else pd.concat([rows, settled])


def slowing(method, power):
    rows = [
        {"n": n, "repetition": r, "factor_seconds": (1 + 0.02 * r) * 1e-6 * n**power} for n in SIZES for r in range(3)
    ]
    return pd.concat([pd.DataFrame(rows).assign(quantity="time", method=method, diagonal="natural"), results()])


def raced(blr, h2_ulv):
    rows = [
        {"method": method, "repetition": r, "factor_seconds": seconds * (1 + 0.01 * r)}
        for method, seconds in (("blr", blr), ("h2_ulv", h2_ulv))
        for r in range(3)
    ]
    return pd.DataFrame(rows).assign(quantity="time", n=16384, diagonal="natural")


def solved(**seconds):
    parts = ("construct_seconds", "factor_seconds", "solve_seconds")
    rows = [{"method": method, **dict.fromkeys(parts, each)} for method, each in seconds.items()]
    times = pd.DataFrame(rows).assign(quantity="time", n=16384, diagonal="natural")
    return pd.concat([times, results("h2_ulv_cg", converged=True)])


def independence(identical):
    return pd.DataFrame({"quantity": "independence", "n": SIZES, "identical": identical})


def graphs(h2_depth):
    rows = [{"method": "blr", "tasks": 120, "depth": 22}, {"method": "h2_ulv", "tasks": 800, "depth": h2_depth}]
    return pd.DataFrame(rows).assign(quantity="task_graph", n=16384)


def chains(*depths):
    rows = [{"n": n, "depth": depth} for n, depth in zip(SIZES, depths, strict=True)]
    return pd.DataFrame(rows).assign(quantity="task_graph", method="h2_ulv")


def swept(quantity, column, errors):
    rows = [{column: at, "relative_error": error} for at, error in errors.items()]
    return pd.DataFrame(rows).assign(quantity=quantity, n=4096, theta=2.0)


def errors(**by_method):
    return pd.concat(results(method, relative_error=error) for method, error in by_method.items())


def residuals(**by_method):
    return pd.concat(results(method, relative_residual=residual) for method, residual in by_method.items())


def ablation(published, without, decoupled=(1e-2, 1e-3, 1e-5)):
    columns = {("2023", "orthonormal"): published, ("none", "orthonormal"): without, ("sc22", "decoupled"): decoupled}
    rows = [
        {"basis_rank": rank, "fill_ins": fill_ins, "lift": lift, "relative_error": error}
        for (fill_ins, lift), column in columns.items()
        for rank, error in zip((40, 80, 160), column, strict=True)
    ]
    return pd.DataFrame(rows).assign(quantity="fill_ins", n=4096)


def solved_in(power):
    rows = [{"n": n, "construct_seconds": 1e-5 * n**power, "factor_seconds": 0.0, "solve_seconds": 0.0} for n in SIZES]
    return pd.concat([pd.DataFrame(rows).assign(quantity="time", method="h2_ulv_cg", diagonal="natural"), results()])


def precisions(single, double):
    rows = [{"n": n, "precision": "single", "iterations": single} for n in SIZES]
    rows += [{"n": n, "precision": "double", "iterations": double} for n in SIZES]
    return pd.DataFrame(rows).assign(quantity="preconditioner", diagonal="natural")


def ranks(structure, power):
    rows = [{"n": n, "rank_at_tolerance": round(5 * n**power), "rank_tolerance": 1e-6} for n in SIZES]
    return pd.DataFrame(rows).assign(quantity="rank", method=structure)


def at_tolerance(column, power):
    rows = [{"n": n, "rank_tolerance": 1e-6, column: 1e-6 * n**power} for n in SIZES]
    return pd.concat([pd.DataFrame(rows).assign(quantity="tolerance", method="h2_ulv_tolerance"), results()])


def workers(part, speed_up):
    rows = [
        {"workers": count, "repetition": r, "part_seconds": (1 + 0.01 * r) / (speed_up if count == 2 else 1)}
        for count in (1, 2)
        for r in range(3)
    ]
    return pd.DataFrame(rows).assign(quantity="workers", n=16384, part=part)


SUPPORTING = {
    "h2-factor-is-linear": growing("h2_ulv", "factor_flops", 1.0),
    "h2-factor-time-is-linear": slowing("h2_ulv", 1.0),
    "h2-blr-is-quadratic": growing("blr", "factor_flops", 2.0),
    "h2-blr-time-is-quadratic": slowing("blr", 1.8),
    "h2-faster-than-blr": raced(blr=4.0, h2_ulv=1.0),
    "h2-kernel-entries-linear": growing("h2_ulv", "kernel_entries", 1.0),
    "h2-bytes-linear": growing("h2_ulv", "factor_bytes", 1.0),
    "h2-boxes-independent": independence([True, True, True]),
    "h2-shorter-critical-path": graphs(h2_depth=13),
    "h2-chain-is-logarithmic": chains(5, 7, 9),
    "h2-near-blocks-are-needed": swept("admissibility", "swept_theta", {0.0: 1e-2, 1.0: 1e-4, 2.0: 1e-5}),
    "h2-heavy-diagonal-hides-errors": swept("diagonal", "times_natural", {1.0: 1e-5, 1000.0: 1e-9}),
    "h2-faster-at-equal-residual": solved(blr=4.0, h2_ulv_cg=2.0),
    "h2-parallel-substitution-accurate": errors(h2_ulv=1.01e-3, h2_ulv_sequential=1e-3),
    "h2-fill-ins-help": ablation([1e-1, 1e-2, 1e-4], [2e-2, 1e-2, 1e-2]),
    "h2-floor-without-fill-ins": ablation([1e-1, 1e-2, 1e-4], [2e-2, 1e-2, 1e-2]),
    "h2-published-problem-is-trivial": results(diagonal="dominant", diagonal_solve_relative_error=2e-5),
    "h2-accuracy-at-fixed-rank": results(relative_error=lambda n: 1e-3 + 1e-5 * (n == 8192)),
    "h2-accuracy-at-fixed-tolerance": at_tolerance("relative_error", 0.4),
    "h2-linear-at-fixed-tolerance": at_tolerance("factor_flops", 1.0),
    "h2-iterations-reach-blr-residual": residuals(h2_ulv_cg=9e-7, blr=1e-6),
    "h2-few-iterations": results("h2_ulv_cg", iterations=12, converged=True),
    "h2-decoupled-lifts-help": ablation([1e-1, 1e-2, 1e-4], [2e-2, 1e-2, 1e-2]),
    "h2-accurate-solver-is-linear": solved_in(1.05),
    "h2-single-precision-suffices": precisions(single=7, double=7),
    "h2-hss-rank-grows": ranks("hss", 0.5),
    "h2-rank-does-not-grow": ranks("h2", 0.05),
    "h2-factor-scales": workers("factor", 1.9),
    "h2-parallel-substitution-scales": workers("parallel substitution", 1.8),
    "h2-sequential-substitution-does-not-scale": workers("sequential substitution", 1.1),
}

CONTRADICTING = {
    "h2-factor-is-linear": growing("h2_ulv", "factor_flops", 1.5),
    "h2-factor-time-is-linear": slowing("h2_ulv", 1.7),
    "h2-blr-is-quadratic": growing("blr", "factor_flops", 1.2),
    "h2-blr-time-is-quadratic": slowing("blr", 1.1),
    "h2-faster-than-blr": raced(blr=1.0, h2_ulv=2.0),
    "h2-kernel-entries-linear": growing("h2_ulv", "kernel_entries", 2.0),
    "h2-bytes-linear": growing("h2_ulv", "factor_bytes", 1.5),
    "h2-boxes-independent": independence([True, False, True]),
    "h2-shorter-critical-path": graphs(h2_depth=400),
    "h2-chain-is-logarithmic": chains(46, 94, 190),
    "h2-near-blocks-are-needed": swept("admissibility", "swept_theta", {0.0: 1e-5, 1.0: 1e-4, 2.0: 1e-5}),
    "h2-heavy-diagonal-hides-errors": swept("diagonal", "times_natural", {1.0: 1e-5, 1000.0: 9e-6}),
    "h2-faster-at-equal-residual": solved(blr=1.0, h2_ulv_cg=2.0),
    "h2-parallel-substitution-accurate": errors(h2_ulv=4e-3, h2_ulv_sequential=1e-3),
    "h2-fill-ins-help": ablation([1e-1, 1e-2, 1e-2], [1e-1, 1e-2, 1e-2]),
    "h2-floor-without-fill-ins": ablation([1e-1, 1e-2, 1e-4], [1e-1, 1e-2, 1e-4]),
    "h2-published-problem-is-trivial": results(diagonal="dominant", diagonal_solve_relative_error=0.5),
    "h2-accuracy-at-fixed-rank": results(relative_error=lambda n: 1e-9 * n**2),
    "h2-accuracy-at-fixed-tolerance": at_tolerance("relative_error", 2.0),
    "h2-linear-at-fixed-tolerance": at_tolerance("factor_flops", 1.5),
    "h2-iterations-reach-blr-residual": residuals(h2_ulv_cg=1e-3, blr=1e-6),
    "h2-few-iterations": results("h2_ulv_cg", iterations=60, converged=True),
    "h2-decoupled-lifts-help": ablation([1e-1, 1e-2, 1e-4], [2e-2, 1e-2, 1e-2], decoupled=[1e-1, 1e-2, 1e-4]),
    "h2-accurate-solver-is-linear": solved_in(1.6),
    "h2-single-precision-suffices": precisions(single=12, double=7),
    "h2-hss-rank-grows": ranks("hss", 0.1),
    "h2-rank-does-not-grow": ranks("h2", 0.5),
    "h2-factor-scales": workers("factor", 1.1),
    "h2-parallel-substitution-scales": workers("parallel substitution", 1.1),
    "h2-sequential-substitution-does-not-scale": workers("sequential substitution", 1.9),
}

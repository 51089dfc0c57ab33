"""Tables that bear out and tables that contradict each claim on a step of K-FAC."""

import pandas as pd

CASE = {"network": "resnet50", "ranks": 2, "rank": 0}
PARTS = ("forward", "backward", "normalization", "SGD communication", "update", "K-FAC", "K-FAC communication")


def rows(quantity: str, *observations: dict[str, object]) -> pd.DataFrame:
    return pd.DataFrame([CASE | {"quantity": quantity} | observation for observation in observations])


def steps(second_order_seconds: float, unattributed_seconds: float) -> pd.DataFrame:
    """Three steps of each optimizer; the five parts they share take one second each."""
    tables = []
    for optimizer, seconds in (("SGD", 0.0), ("K-FAC", second_order_seconds)):
        for repetition in range(3):
            step = {"optimizer": optimizer, "repetition": repetition}
            times = dict.fromkeys(PARTS[:5], 1.0) | dict.fromkeys(PARTS[5:], seconds / 2)
            tables.append(rows("part", *(step | {"part": part, "part_seconds": t} for part, t in times.items())))
            whole = sum(times.values()) + unattributed_seconds
            timed = {"parts_timed": True, "step_seconds": whole, "unattributed_seconds": unattributed_seconds}
            tables.append(rows("step", step | timed, step | {"parts_timed": False, "step_seconds": whole}))
    return pd.concat(tables)


def traffic(statistics: int, weights: int) -> pd.DataFrame:
    """Two factors of 3 and 5 and four 2 x 2 matrices, beside 400 bytes of gradients."""
    sent = (("SGD", "gradients", 400, 2), ("K-FAC", "gradients", 400, 1))
    sent += (("K-FAC", "weights", weights, 1), ("K-FAC", "statistics", statistics, 1))
    names = ("optimizer", "content", "vector_bytes", "passes")
    factors = ({"size": 3, "matrices": 1}, {"size": 5, "matrices": 1}, {"size": 2, "matrices": 4})
    return pd.concat([rows("traffic", *(dict(zip(names, row, strict=True)) for row in sent)), rows("factor", *factors)])


def ownership(balanced: float) -> pd.DataFrame:
    split = ({"rule": "balanced", "busiest_flops": balanced}, {"rule": "contiguous", "busiest_flops": 10.0})
    return rows("ownership", *({"owning_ranks": ranks} | rule for ranks in (1, 2, 4) for rule in split))


TRIANGLES = 4 * (6 + 15 + 4 * 3)

SUPPORTING = {
    "step-half-is-second-order": steps(5.0, 0.0),
    "step-parts-are-complete": steps(5.0, 0.05),
    "step-packing-halves-statistics": traffic(statistics=TRIANGLES, weights=400),
    "step-only-statistics-are-extra": traffic(statistics=TRIANGLES, weights=400),
    "step-ranks-do-not-matter": rows("equality", {"relative_difference": 1e-15}, {"relative_difference": 3e-14}),
    "step-balanced-inversion": ownership(balanced=7.0),
}
CONTRADICTING = {
    "step-half-is-second-order": steps(0.5, 0.0),
    "step-parts-are-complete": steps(5.0, 0.5),
    "step-packing-halves-statistics": traffic(statistics=4 * (9 + 25 + 4 * 4), weights=400),
    "step-only-statistics-are-extra": traffic(statistics=TRIANGLES, weights=800),
    "step-ranks-do-not-matter": rows("equality", {"relative_difference": 1e-15}, {"relative_difference": 1e-6}),
    "step-balanced-inversion": ownership(balanced=12.0),
}

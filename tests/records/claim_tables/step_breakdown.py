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


def modelled(sgd: float, stale: float, fresh: float, sampled: float, alone: float = 1.0) -> pd.DataFrame:
    """Modelled steps on 1, 64, 1,024 and 2,048 GPUs; SGD's seconds, then what each kind of K-FAC adds to them."""
    kinds = {
        ("SGD", "empirical", "unit-wise", 1.0): 0.0,
        ("K-FAC", "empirical", "unit-wise", 0.1): stale,
        ("K-FAC", "empirical", "unit-wise", 1.0): fresh,
        ("K-FAC", "sampled", "full", 1.0): sampled,
    }
    names = ("optimizer", "fisher", "batch_norm", "refreshed")
    tables = [predicted(model=1.02, last=1.2)]
    for kind, added in kinds.items():
        for gpus in (1, 64, 1024, 2048):
            added_here = alone if gpus == 1 and kind[0] == "K-FAC" else added
            times = dict.fromkeys(PARTS[:5], sgd / 5) | dict.fromkeys(PARTS[5:], added_here / 2)
            step = dict(zip(names, kind, strict=True)) | {"gpus": gpus}
            tables.append(rows("modelled part", *(step | {"part": p, "modelled_seconds": t} for p, t in times.items())))
    return pd.concat(tables)


def predicted(model: float, last: float) -> pd.DataFrame:
    """Published steps of one second and what was predicted; fitted ones and those with rings are far off."""
    variant = {"fisher": "empirical", "batch_norm": "full", "stale": False, "seconds_per_step": 1.0}
    held = variant | {"held_out": True, "between_nodes": "halving", "modelled_seconds": model, "last_seconds": last}
    ignored = held | {"modelled_seconds": 9.0 / model, "last_seconds": 9.0 / last}
    steps = [held | {"gpus": gpus} for gpus in (64, 128, 256, 512)]
    return rows("predicted step", *steps, ignored | {"held_out": False}, ignored | {"between_nodes": "ring"})


def variants(**seconds: float) -> pd.DataFrame:
    """Whole refreshing steps of variants of K-FAC."""
    step = {"optimizer": "K-FAC", "refreshed": 1.0, "parts_timed": False, "record": "a"}
    names = {"plain": ("empirical", "unit-wise"), "sampled": ("sampled", "unit-wise"), "full": ("empirical", "full")}
    chosen = {name: dict(zip(("fisher", "batch_norm"), names[name], strict=True)) for name in seconds}
    times = ({"repetition": k} | chosen[name] | {"step_seconds": s} for name, s in seconds.items() for k in range(3))
    return rows("step", *(step | time for time in times))


def exchanges(waited: float) -> pd.DataFrame:
    """The first exchange of a K-FAC step on its own takes a second; in a whole step some of it is waited for."""
    step = {"optimizer": "K-FAC", "refreshed": 1.0, "step_seconds": 9.0, "unattributed_seconds": 0.0}
    pairs = [
        step | {"repetition": k, "parts_timed": timed, "first_exchange_seconds": 1.0 if timed else waited}
        for k in range(3)
        for timed in (True, False)
    ]
    return rows("step", *pairs)


def own_steps(network: str, stale: float) -> pd.DataFrame:
    """Predicted steps of a second in two parts; stale K-FAC's take something else; another network is far off."""
    kinds = [("SGD", 1.0, 1.05), ("K-FAC", 1.0, 0.95), ("K-FAC", 0.0, stale)]
    step = {"batch_norm": None, "fisher": None, "predicted_network": network}
    halves = [
        step | {"optimizer": o, "refreshed": r, "repetition": k, "part": part} | seconds
        for o, r, measured in kinds
        for k in range(3)
        for part in ("forward", "backward")
        for seconds in [{"measured_seconds": measured / 2, "modelled_seconds": 0.5}]
    ]
    other = halves[0] | {"predicted_network": "bert-base-block", "modelled_seconds": 9.0}
    return rows("own step", *halves, other)


TRIANGLES = 4 * (6 + 15 + 4 * 3)

SUPPORTING = {
    "step-half-is-second-order": steps(5.0, 0.0),
    "step-parts-are-complete": steps(5.0, 0.05),
    "step-packing-halves-statistics": traffic(statistics=TRIANGLES, weights=400),
    "step-only-statistics-are-extra": traffic(statistics=TRIANGLES, weights=400),
    "step-ranks-do-not-matter": rows("equality", {"relative_difference": 1e-15}, {"relative_difference": 3e-14}),
    "step-balanced-inversion": ownership(balanced=7.0),
    "step-negligible-overhead": modelled(sgd=0.16, stale=0.01, fresh=0.1, sampled=0.2),
    "step-staleness-speed-up": modelled(sgd=0.16, stale=0.01, fresh=0.1, sampled=0.2),
    "step-superlinear-to-64-gpus": modelled(sgd=0.16, stale=0.01, fresh=0.1, sampled=0.2),
    "step-five-and-a-half-minutes": modelled(sgd=0.16, stale=0.01, fresh=0.1, sampled=0.2),
    "step-half-is-second-order-at-scale": modelled(sgd=0.16, stale=0.01, fresh=0.1, sampled=0.16),
    "step-empirical-over-sampled-fisher": variants(plain=1.0, sampled=1.2),
    "step-unit-wise-over-full-batch-norm": variants(plain=1.0, full=1.2),
    "step-input-statistics-are-hidden": exchanges(waited=0.1),
    "step-own-steps-are-predicted": own_steps("resnet50", stale=1.1),
    "step-held-out-network-is-predicted": own_steps("resnet18", stale=1.1),
    "step-model-predicts-unseen-steps": predicted(model=1.05, last=1.2),
    "step-model-beats-last-value": predicted(model=1.05, last=1.2),
}
CONTRADICTING = {
    "step-half-is-second-order": steps(0.5, 0.0),
    "step-parts-are-complete": steps(5.0, 0.5),
    "step-packing-halves-statistics": traffic(statistics=4 * (9 + 25 + 4 * 4), weights=400),
    "step-only-statistics-are-extra": traffic(statistics=TRIANGLES, weights=800),
    "step-ranks-do-not-matter": rows("equality", {"relative_difference": 1e-15}, {"relative_difference": 1e-6}),
    "step-balanced-inversion": ownership(balanced=12.0),
    "step-negligible-overhead": modelled(sgd=0.16, stale=0.08, fresh=0.1, sampled=0.2),
    "step-staleness-speed-up": modelled(sgd=0.16, stale=0.1, fresh=0.1, sampled=0.2),
    "step-superlinear-to-64-gpus": modelled(sgd=0.16, stale=0.01, fresh=0.1, sampled=0.2, alone=0.1),
    "step-five-and-a-half-minutes": modelled(sgd=0.16, stale=0.1, fresh=0.1, sampled=0.2),
    "step-half-is-second-order-at-scale": modelled(sgd=0.16, stale=0.01, fresh=0.1, sampled=0.6),
    "step-empirical-over-sampled-fisher": variants(plain=1.0, sampled=0.9),
    "step-unit-wise-over-full-batch-norm": variants(plain=1.0, full=0.9),
    "step-input-statistics-are-hidden": exchanges(waited=0.8),
    "step-own-steps-are-predicted": own_steps("resnet50", stale=1.5),
    "step-held-out-network-is-predicted": own_steps("resnet18", stale=1.5),
    "step-model-predicts-unseen-steps": predicted(model=0.7, last=1.2),
    "step-model-beats-last-value": predicted(model=0.7, last=1.2),
}

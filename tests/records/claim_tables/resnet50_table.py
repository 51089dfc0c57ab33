"""Tables that bear out and tables that contradict each claim on training which a table can decide."""

import pandas as pd

from kinji.records.metrics.resnet50_table import PLAIN

ON_PRINTED_NUMBERS = {  # decided by paper/reference/ alone, tested in tests/records/metrics/test_resnet50_table.py
    "table-iterations-follow-from-epochs",
    "table-row-8192-follows-from-epochs",
    "table-iterations-at-131072",
    "table-minutes-follow-from-steps",
}
BATCHES = (64, 256, 1024)
# epochs to a target at each batch size
FASTER = {"sgd": (4, 8, 16), "kfac": (4, 6, 8)}
SLOWER = {"sgd": (4, 8, 16), "kfac": (4, 12, 32)}


def times(target: str, epochs: dict[str, tuple[int, ...]], *, reached: bool = True) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "quantity": "target",
                "target": target,
                "optimizer": optimizer,
                "batch": batch,
                "seed": 0,
                "fold": fold,
                "reached": reached or optimizer == "sgd",
                "epochs_to_target": count + (fold == 2 and optimizer == "kfac"),
            }
            for optimizer, counts in epochs.items()
            for batch, count in zip(BATCHES, counts, strict=True)
            for fold in range(5)
        ]
    )


def accuracies(sgd: int, kfac: int) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "quantity": "accuracy",
                "optimizer": optimizer,
                "batch": batch,
                "seed": 0,
                "fold": fold,
                "test_correct": correct + (fold == 2),
                "test_images": 360,
            }
            for optimizer, correct in {"sgd": sgd, "kfac": kfac}.items()
            for batch in BATCHES
            for fold in range(5)
        ]
    )


def ablation(option: str, value: str, *, correct: int = 354, epochs: tuple[int, ...] = FASTER["kfac"]) -> pd.DataFrame:
    """K-FAC with one option changed, beside the plain one of 354 images of 360 and `FASTER` epochs."""
    kfac = [accuracies(sgd=0, kfac=count).query("optimizer == 'kfac'") for count in (354, correct)]
    kfac += [times("loss", {"kfac": counts}) for counts in (FASTER["kfac"], epochs)]
    plain, changed = pd.concat(kfac[::2]), pd.concat(kfac[1::2]).assign(**{option: value})
    return pd.concat([plain, changed]).fillna({option: PLAIN[option]})


def statistics(left: float) -> pd.DataFrame:
    rows = accuracies(sgd=0, kfac=0).query("optimizer == 'kfac'").assign(quantity="statistics", statistics="adaptive")
    return rows.assign(formed_bytes=1000 * left + rows["fold"], every_step_bytes=1000)


FLAT = {"kfac": (4, 4, 12)}

SUPPORTING = {
    "table-fewer-epochs-to-accuracy": times("accuracy", FASTER),
    "table-fewer-epochs-to-loss": times("loss", FASTER),
    "table-fewer-epochs-at-largest-batch": times("accuracy", FASTER),
    "table-gap-grows-to-accuracy": times("accuracy", FASTER),
    "table-gap-grows-to-loss": times("loss", FASTER),
    "table-accuracy-parity": accuracies(sgd=354, kfac=354),
    "table-flat-up-to-critical-batch": times("loss", FLAT),
    "table-rises-beyond-critical-batch": times("loss", FLAT),
    "table-empirical-fisher": ablation("fisher", "sampled"),
    "table-empirical-fisher-accuracy": ablation("fisher", "sampled"),
    "table-unit-wise-batch-norm": ablation("batch_norm", "full"),
    "table-staleness": ablation("statistics", "adaptive"),
    "table-staleness-traffic": statistics(left=0.2),
    "table-weight-rescaling": ablation("rescaling", "published"),
    "table-momentum-rule": ablation("momentum_rule", "released"),
}
CONTRADICTING = {
    "table-fewer-epochs-to-accuracy": times("accuracy", SLOWER),
    "table-fewer-epochs-to-loss": times("loss", FASTER, reached=False),
    "table-fewer-epochs-at-largest-batch": times("accuracy", SLOWER),
    "table-gap-grows-to-accuracy": times("accuracy", SLOWER),
    "table-gap-grows-to-loss": times("loss", FASTER, reached=False),
    "table-accuracy-parity": accuracies(sgd=356, kfac=350),
    "table-flat-up-to-critical-batch": times("loss", {"kfac": (4, 12, 12)}),
    "table-rises-beyond-critical-batch": times("loss", {"kfac": (8, 8, 4)}),
    "table-empirical-fisher": ablation("fisher", "sampled", epochs=(2, 3, 4)),
    "table-empirical-fisher-accuracy": ablation("fisher", "sampled", correct=358),
    "table-unit-wise-batch-norm": ablation("batch_norm", "full", correct=358),
    "table-staleness": ablation("statistics", "adaptive", correct=350),
    "table-staleness-traffic": statistics(left=0.9),
    "table-weight-rescaling": ablation("rescaling", "published", correct=350),
    "table-momentum-rule": ablation("momentum_rule", "released", correct=358),
}

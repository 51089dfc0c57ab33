"""Tables that bear out and tables that contradict each claim on the race which a table can decide."""

import pandas as pd

ON_PRINTED_NUMBERS = {  # decided by paper/reference/ alone, tested in tests/records/metrics/test_imagenet_race.py
    "race-fewer-steps",
    "race-fewer-images-a-second",
    "race-fastest",
    "race-first-order-90-epochs",
}


def modelled(*, sgd: float, stale: float, fresh: tuple[float, float]) -> pd.DataFrame:
    """Modelled seconds: of SGD and of stale K-FAC on 1,024 GPUs, of fresh K-FAC on 8 and on 1,024."""
    steps = (("SGD", 1024, 1.0, sgd), ("K-FAC", 1024, 0.1, stale))
    steps += (("K-FAC", 8, 1.0, fresh[0]), ("K-FAC", 1024, 1.0, fresh[1]))
    names = ("optimizer", "gpus", "refreshed", "step_seconds")
    rows = [{"quantity": "modelled step"} | dict(zip(names, step, strict=True)) for step in steps]
    return pd.DataFrame([*rows, {"quantity": "model error", "relative_error": 0.1}])


SUPPORTING = {
    "race-same-machine": modelled(sgd=0.1, stale=0.12, fresh=(0.3, 0.2)),
    "race-weak-scaling": modelled(sgd=0.1, stale=0.12, fresh=(0.3, 0.2)),
}
CONTRADICTING = {
    "race-same-machine": modelled(sgd=0.1, stale=0.3, fresh=(0.3, 0.2)),
    "race-weak-scaling": modelled(sgd=0.1, stale=0.12, fresh=(0.2, 0.3)),
}

"""What decides the claims on the race to train ImageNet: arithmetic on printed rows, and steps of the cost model.

A metric on modelled steps has an interval as wide as the model's error on published steps that it was not fitted to.
"""

from __future__ import annotations

import pandas as pd

from kinji.records.estimates import Estimate, exact
from kinji.records.metrics.resnet50_table import IMAGENET_IMAGES
from kinji.records.tables import load_reference

SECOND_ORDER = ("K-FAC", "SP-NGD")
FULL_WIDTH = "SP-NGD"
SGD_EPOCHS = 90
BASE_GPUS, LARGEST_TRAINED = 8, 1024


def history() -> pd.DataFrame:
    """Return the printed history with what follows from it: steps, epochs, speed-up over the 8-GPU base line."""
    rows = load_reference()["resnet50_history"]
    steps = 60 * rows["minutes"] / rows["seconds_per_iteration"]
    return rows.assign(
        steps=steps,
        epochs=steps * rows["batch"] / IMAGENET_IMAGES,
        speed_up=base_minutes() / rows["minutes"],
        second_order=rows["optimizer"].isin(SECOND_ORDER),
    )


def base_minutes() -> float:
    """Return the minutes of the base line that speed-ups are over."""
    rows = load_reference()["resnet50_history"]
    return float(rows.loc[rows["devices"] == BASE_GPUS, "minutes"].iloc[0])


def steps_over_sgd(table: pd.DataFrame) -> Estimate:
    """Return the steps of SP-NGD over those of first-order training at its batch, the largest of the works."""
    ours, theirs = _full_width(history())
    return exact((ours["steps"] / theirs.loc[theirs["batch"] == ours["batch"], "steps"]).max())


def throughput_over_sgd(table: pd.DataFrame) -> Estimate:
    """Return the images of SP-NGD per second and device over those of the fastest SGD on the same GPUs."""
    ours, theirs = _full_width(history())
    same = theirs[theirs["device"] == ours["device"]]
    return exact(ours["images_per_second_and_device"] / same["images_per_second_and_device"].max())


def minutes_over_sgd(table: pd.DataFrame) -> Estimate:
    """Return the minutes of SP-NGD over those of the fastest SGD, on whatever machine."""
    ours, theirs = _full_width(history())
    return exact(ours["minutes"] / theirs["minutes"].min())


def largest_epoch_misfit(table: pd.DataFrame) -> Estimate:
    """Return by how much, relative to 90, the epochs of a first-order row differ from 90; the largest of the rows."""
    _, theirs = _full_width(history())
    return exact((theirs["epochs"].dropna() / SGD_EPOCHS - 1).abs().max())


def modelled_minutes_over_sgd(table: pd.DataFrame) -> Estimate | None:
    """Return modelled minutes of SP-NGD over those of SGD of 90 epochs: its printed steps, one machine and code."""
    ours, _ = _full_width(history())
    stale, sgd = modelled_seconds(table, "K-FAC", stale=True), modelled_seconds(table, "SGD")
    if LARGEST_TRAINED not in stale.index or LARGEST_TRAINED not in sgd.index:
        return None
    batch = float(ours["batch"])
    ratio = ours["steps"] * stale[LARGEST_TRAINED] / (sgd_steps(batch) * sgd[LARGEST_TRAINED])
    return _widened(table, ratio)


def modelled_efficiency(table: pd.DataFrame) -> Estimate | None:
    """Return the modelled step of K-FAC on 8 GPUs over that on 1,024, each GPU with as many images."""
    fresh = modelled_seconds(table, "K-FAC")
    if not {BASE_GPUS, LARGEST_TRAINED} <= set(fresh.index):
        return None
    return _widened(table, fresh[BASE_GPUS] / fresh[LARGEST_TRAINED])


def sgd_steps(batch: float) -> float:
    """Return the steps of SGD: 90 epochs at any batch."""
    return SGD_EPOCHS * IMAGENET_IMAGES / batch


def modelled_seconds(table: pd.DataFrame, optimizer: str, *, stale: bool = False) -> pd.Series:
    """Return the modelled seconds of a step by the number of GPUs."""
    rows = table[table["quantity"] == "modelled step"]
    if rows.empty:
        return pd.Series(dtype=float)
    rows = rows[(rows["optimizer"] == optimizer) & ((rows["refreshed"] < 1) == stale)]
    return rows.set_index("gpus")["step_seconds"]


def measured_throughput(table: pd.DataFrame) -> pd.DataFrame:
    """Return images per second and rank of the median measured step, by optimizer, ranks, pixels and machine."""
    rows = table[table["quantity"] == "measured step"]
    if rows.empty:
        return pd.DataFrame()
    kinds = ["optimizer", "gpus", "pixels", "measured_on", "batch"]
    steps = rows.groupby(kinds)["step_seconds"].median().reset_index()
    return steps.assign(images_per_second_and_device=steps["batch"] / steps["gpus"] / steps["step_seconds"])


def _full_width(rows: pd.DataFrame) -> tuple[pd.Series, pd.DataFrame]:
    """Return the row of SP-NGD, and those of first-order works."""
    return rows[rows["optimizer"] == FULL_WIDTH].iloc[0], rows[~rows["second_order"]]


def _widened(table: pd.DataFrame, value: float) -> Estimate:
    error = float(table.loc[table["quantity"] == "model error", "relative_error"].iloc[0])
    return Estimate(float(value), float(value * (1 - error)), float(value * (1 + error)), modelled=True)

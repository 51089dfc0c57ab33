"""The history as a table, published rows first, then those modelled and measured here."""

from __future__ import annotations

import pandas as pd

from kinji.records.metrics.imagenet_race import (
    FULL_WIDTH,
    LARGEST_TRAINED,
    base_minutes,
    history,
    measured_throughput,
    modelled_seconds,
    sgd_steps,
)


def summarize(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row a training: machine, batch, optimizer, time, steps, accuracy, throughput, and its origin."""
    rows = [*_published(), *_modelled(table), *_measured(table)]
    return pd.DataFrame(rows).map(_written)


def _written(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return "" if pd.isna(value) else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _published() -> list[dict[str, object]]:
    return [
        {
            "work": row["work"],
            "devices": f"{row['devices']:,} {row['device']}",
            "batch": row["batch"],
            "optimizer": row["optimizer"],
            "s/step": row["seconds_per_iteration"],
            "minutes": row["minutes"],
            "steps": round(row["steps"], -1),
            "accuracy (%)": row["accuracy_percent"],
            "images/s/device": row["images_per_second_and_device"],
            "speed-up over 8 GPUs": round(row["speed_up"], 1),
            "kind": "published",
            "source": row["source"],
        }
        for row in history().to_dict("records")
    ]


def _modelled(table: pd.DataFrame) -> list[dict[str, object]]:
    rows = history()
    ours = rows[rows["optimizer"] == FULL_WIDTH].iloc[0].to_dict()
    batch = int(ours["batch"])
    sides = {
        "SGD": (modelled_seconds(table, "SGD"), sgd_steps(batch)),
        "K-FAC, stale": (modelled_seconds(table, "K-FAC", stale=True), float(ours["steps"])),
    }
    return [
        {
            "work": "cost model",
            "devices": f"{LARGEST_TRAINED:,} V100",
            "batch": batch,
            "optimizer": optimizer,
            "s/step": round(seconds[LARGEST_TRAINED], 3),
            "minutes": round(steps * seconds[LARGEST_TRAINED] / 60, 1),
            "steps": round(steps, -1),
            "images/s/device": round(batch / LARGEST_TRAINED / seconds[LARGEST_TRAINED]),
            "speed-up over 8 GPUs": round(60 * base_minutes() / (steps * seconds[LARGEST_TRAINED]), 1),
            "kind": "modelled",
            "source": "fitted to published steps on at most 32 GPUs",
        }
        for optimizer, (seconds, steps) in sides.items()
        if LARGEST_TRAINED in seconds.index
    ]


def _measured(table: pd.DataFrame) -> list[dict[str, object]]:
    return [
        {
            "work": f"here, {row['pixels']:g} px",
            "devices": f"{row['gpus']:g} ranks, {row['measured_on']}",
            "batch": row["batch"],
            "optimizer": row["optimizer"],
            "s/step": round(row["step_seconds"], 3),
            "images/s/device": round(row["images_per_second_and_device"], 1),
            "kind": "measured",
            "source": "records of step_breakdown",
        }
        for row in measured_throughput(table).to_dict("records")
    ]

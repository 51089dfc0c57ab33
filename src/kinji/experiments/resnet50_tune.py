"""Hyperparameters of the table: a full grid, with as many trials for one optimizer as for the other.

A trial is a row of the table, trained on splits of a seed that the table does not use until it has reached both targets
on their validation parts. Its score is the geometric mean, over splits and targets, of the epochs this took (one more
than the budget where it did not). No test part of these splits is looked at, but they are splits of the images that the
table is made of.

``python -m kinji.experiments.resnet50_tune RECORD...`` prints the best trials of each row.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pandas as pd

from kinji.experiments.cases import Resnet50TableCase, Resnet50TuneCase
from kinji.experiments.context import Context
from kinji.experiments.resnet50_table import Row, first_at_target
from kinji.experiments.resnet50_table.checks import check
from kinji.experiments.resnet50_table.parts import load_parts
from kinji.experiments.resnet50_table.training import new_model, new_optimizer, train_fold
from kinji.records import tidy
from kinji.training import Reading

HYPERPARAMETERS = ("lr", "momentum", "damping")


def measure(case: Resnet50TuneCase, context: Context) -> Iterator[Row]:
    """Run every trial of the grid on every split.

    Yields
    ------
    dict
        The hyperparameters of a trial, the split, and the epochs to each target; a run that diverges reaches none.
    """
    for trial, split in context.progress.track(list(itertools.product(grid(case), case.splits)), "runs"):
        yield {"split": split, **hyperparameters(trial), **outcome(trial, split, context)}


def grid(case: Resnet50TuneCase) -> list[Resnet50TableCase]:
    """Return the row of the table that each trial would make; momentum SGD has no damping."""
    fixed = {f.name: getattr(case, f.name) for f in fields(case) if f.name not in (*HYPERPARAMETERS, "splits")}
    trials = [
        Resnet50TableCase(lr=lr, momentum=momentum, damping=damping, **fixed)
        for lr, momentum, damping in itertools.product(case.lr, case.momentum, case.damping or (None,))
    ]
    for trial in trials:
        check(trial)
    return trials


def hyperparameters(trial: Resnet50TableCase) -> Row:
    """Return the hyperparameters that a trial has."""
    values = {name: getattr(trial, name) for name in HYPERPARAMETERS}
    return {name: value for name, value in values.items() if value is not None}


def outcome(trial: Resnet50TableCase, split: int, context: Context) -> Row:
    """Train one trial on one split and return when it reached each target."""
    quietly = replace(context, checkpoints=None)
    parts = load_parts(trial, split, quietly)
    model = new_model(trial, parts, split).to(context.device)
    optimizer = new_optimizer(trial, model, parts, quietly)
    readings = list(until_targets(trial, train_fold(trial, model, optimizer, parts, split, quietly)))
    first = first_at_target(trial, readings)
    return {f"epochs_to_{target}": at.epoch if at else trial.epochs + 1.0 for target, at in first.items()}


def until_targets(trial: Resnet50TableCase, readings: Iterator[Reading]) -> Iterator[Reading]:
    """Yield readings until both targets are reached, or the run diverges."""
    seen: list[Reading] = []
    with suppress(FloatingPointError):
        for reading in readings:
            seen.append(reading)
            yield reading
            if all(first_at_target(trial, seen).values()):
                return


def rank_trials(table: pd.DataFrame) -> pd.DataFrame:
    """Return the trials of each optimizer and batch, best first, with their ``score``."""
    row = ["optimizer", "batch"]
    trial = [*row, *(name for name in HYPERPARAMETERS if name in table)]
    logarithms = np.log(table["epochs_to_accuracy"] * table["epochs_to_loss"]) / 2
    scores = np.exp(table.assign(score=logarithms).groupby(trial, dropna=False)["score"].mean())
    return scores.reset_index().sort_values([*row, "score"])


if __name__ == "__main__":
    ranked = rank_trials(tidy([Path(name) for name in sys.argv[1:]], scale="smoke"))
    print(ranked.groupby(["optimizer", "batch"]).head(3).to_string(index=False))

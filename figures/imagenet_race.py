"""The race to train ResNet-50 on ImageNet: speed-up over 8 GPUs, images per second and device, steps over the batch.

Published points are hollow, modelled ones crosses joined by lines, measured ones filled.
"""

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kinji.records.metrics.imagenet_race import (
    BASE_GPUS,
    SGD_EPOCHS,
    base_minutes,
    history,
    measured_throughput,
    modelled_seconds,
    sgd_steps,
)
from kinji.records.metrics.resnet50_table import IMAGENET_IMAGES

FIRST, SECOND = 0, 1  # colors of the palette
IMAGES_PER_GPU = 32
BESIDE = {  # by what is drawn: where a name stands, in points from its mark, if not at its right
    "speed_up": {
        "Akiba 2017": (5, -8),
        "Jia 2018": (5, -7),
        "Osawa 2019": (6, -7),
        "Ying 2018": (-5, 5),
        "Yamazaki 2019": (-5, 4),
        "Mikami 2018": (4, -9),
        "Osawa 2020": (5, -1),
    },
    "images_per_second_and_device": {
        "Ying 2018": (-6, -2),
        "Yamazaki 2019": (4, -9),
        "Akiba 2017": (2, -10),
        "Goyal 2017": (-3, -10),
        "Osawa 2020": (6, -6),
    },
    "steps": {
        "Ying 2018": (4, 5),
        "Akiba 2017": (-5, -2),
        "You 2017": (-5, -3),
        "Mikami 2018": (5, 1),
        "Jia 2018": (-2, -10),
        "Yamazaki 2019": (5, 1),
        "Osawa 2020": (-6, -3),
    },
}


def draw(table: pd.DataFrame, reference: dict[str, pd.DataFrame]) -> Figure:
    """Draw the three panels, with one legend below."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 4.4))
    draw_speed_up(axes[0], table, reference["resnet50_spngd"])
    draw_throughput(axes[1], table)
    draw_steps(axes[2], reference["resnet50_table"])
    handles = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower left", ncols=4, frameon=False)
    return figure


def draw_speed_up(ax: Axes, table: pd.DataFrame, printed: pd.DataFrame) -> None:
    """Draw the speed-up of whole trainings over 29 hours on 8 GPUs, and what the model makes of one machine."""
    rows = history()
    draw_published(ax, rows, "devices", "speed_up")
    gpus = pd.Series([BASE_GPUS, rows["devices"].max()])
    ax.plot(gpus, gpus / BASE_GPUS, color="0.6", linewidth=0.8, label="as many times faster as there are devices")
    sgd = modelled_seconds(table, "SGD")
    steps = sgd_steps(IMAGES_PER_GPU * sgd.index.to_series())
    draw_modelled(ax, 60 * base_minutes() / (steps * sgd), FIRST, f"SGD on V100, {SGD_EPOCHS} epochs, modelled")
    stale, counts = modelled_seconds(table, "K-FAC", stale=True), printed.set_index("gpus")["iterations"]
    draw_modelled(
        ax, (60 * base_minutes() / (counts * stale)).dropna(), SECOND, "stale K-FAC on V100, printed steps, modelled"
    )
    log_axes(ax, "devices", "speed-up over 29 hours on 8 GPUs")
    ax.set_title("Time to train, whatever the device")


def draw_throughput(ax: Axes, table: pd.DataFrame) -> None:
    """Draw images per second and device: published, modelled on V100 GPUs, and measured here."""
    draw_published(ax, history(), "devices", "images_per_second_and_device")
    for optimizer, stale, color in (("SGD", False, FIRST), ("K-FAC", False, 2), ("K-FAC", True, SECOND)):
        label = "K-FAC on V100, every statistic fresh, modelled" if color == 2 else None
        draw_modelled(ax, IMAGES_PER_GPU / modelled_seconds(table, optimizer, stale=stale), color, label)
    for row in measured_throughput(table).to_dict("records"):
        color = sns.color_palette()[FIRST if row["optimizer"] == "SGD" else SECOND]
        label = f"{row['optimizer']}, {row['pixels']:g} px, on {row['measured_on']}, measured"
        at = (row["gpus"], row["images_per_second_and_device"])
        ax.plot(*at, "o", color=color, label=label)
    log_axes(ax, "devices", "images per second and device")
    ax.set_title("Throughput of one device")


def draw_steps(ax: Axes, printed: pd.DataFrame) -> None:
    """Draw the steps of whole trainings over their batch, and K-FAC's published table."""
    rows = history().dropna(subset=["steps"])
    draw_published(ax, rows, "batch", "steps")
    sizes = pd.Series([printed["batch"].min(), printed["batch"].max()])
    ax.plot(sizes, sgd_steps(sizes), color="0.6", linestyle="--", linewidth=0.8, label=f"{SGD_EPOCHS} epochs")
    ax.plot(sizes, 35 * IMAGENET_IMAGES / sizes, color="0.6", linestyle=":", linewidth=0.8, label="35 epochs")
    style = {"marker": "D", "markerfacecolor": "none", "color": sns.color_palette()[SECOND], "linestyle": "none"}
    ax.plot(printed["batch"], printed["iterations"], **style)
    log_axes(ax, "batch size", "steps of a training")
    ax.set_xticks(printed["batch"], [f"{size // 1024}K" for size in printed["batch"]])
    ax.set_title("Steps to train")


def draw_published(ax: Axes, rows: pd.DataFrame, x: str, y: str) -> None:
    """Draw printed rows hollow, first- and second-order apart, each with its name."""
    kinds = ((False, "s", FIRST, "first-order, published"), (True, "D", SECOND, "K-FAC, published"))
    for second_order, marker, color, label in kinds:
        seen = rows[rows["second_order"] == second_order].dropna(subset=[x, y])
        style = {"linestyle": "none", "marker": marker, "markerfacecolor": "none", "color": sns.color_palette()[color]}
        ax.plot(seen[x], seen[y], label=label, **style)
        for name, at_x, at_y in seen.drop_duplicates("work", keep="last")[["work", x, y]].itertuples(index=False):
            shift = BESIDE[y].get(name, (5, -3))
            side = "left" if shift[0] > 0 else "right"
            ax.annotate(name, (at_x, at_y), shift, textcoords="offset points", fontsize=6.5, ha=side)


def draw_modelled(ax: Axes, values: pd.Series, color: int, label: str | None) -> None:
    """Draw modelled values as crosses on a line."""
    style = {"marker": "x", "markersize": 4, "linewidth": 0.8, "color": sns.color_palette()[color]}
    ax.plot(values.index, values, label=label, **style)


def log_axes(ax: Axes, x: str, y: str) -> None:
    """Make both axes logarithmic, with plain numbers."""
    ax.set(xscale="log", yscale="log", xlabel=x, ylabel=y)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter("{x:,g}")
    ax.minorticks_off()
    ax.margins(x=0.16)

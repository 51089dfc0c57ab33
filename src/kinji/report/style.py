"""One style for every figure."""

import matplotlib as mpl
import seaborn as sns

RC = {
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "savefig.bbox": "tight",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.markersize": 5,
    "pdf.fonttype": 42,
    "figure.constrained_layout.use": True,
}


def apply_style() -> None:
    """Set matplotlib and seaborn to the house style; figures are drawn without a display."""
    mpl.use("agg")
    sns.set_theme(context="paper", style="ticks", palette="colorblind", rc=RC)

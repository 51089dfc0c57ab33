"""The claims table on a terminal."""

import sys

import pandas as pd
from rich.console import Console
from rich.table import Table

LOG_WIDTH = 160

COLOURS = {
    "reproduced": "green",
    "trend reproduced": "green",
    "modelled": "cyan",
    "inconclusive": "yellow",
    "not reproduced": "red",
    "not run": "dim",
}


def _origin(rows: pd.DataFrame) -> str:
    """Name every scale and machine that the verdicts come from."""
    decided = rows[rows["verdict"] != "not run"]
    return "; ".join(sorted({f"{scale} {machine}" for scale, machine in decided[["scale", "machine"]].to_numpy()}))


def print_claims(rows: pd.DataFrame) -> None:
    """Print claim, published value, ours and verdict; then how many claims got each verdict."""
    table = Table(
        "claim",
        "published",
        "ours",
        "accepted",
        "verdict",
        title=f"Claims: scale and machine {_origin(rows)}",
        show_lines=True,
    )
    for row in rows.astype(str).to_dict("records"):
        verdict = f"[{COLOURS[row['verdict']]}]{row['verdict']}[/]"
        table.add_row(row["claim"], row["published"], f"{row['ours']} {row['interval']}", row["accept"], verdict)
    console = Console() if sys.stdout.isatty() else Console(width=LOG_WIDTH)
    console.print(table)
    counts = rows["verdict"].value_counts() if len(rows) else pd.Series(dtype=int)
    console.print(", ".join(f"{counts[verdict]} {verdict}" for verdict in COLOURS if verdict in counts))

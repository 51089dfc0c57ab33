"""Published claims and computed verdicts."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import pandas as pd
import yaml

from kinji.errors import KinjiError
from kinji.records import layout, tables
from kinji.records.estimates import Estimate

VERDICTS = ("reproduced", "trend reproduced", "modelled", "inconclusive", "not reproduced", "not run")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One published claim, the metric that decides it and the range of that metric in which it holds.

    Attributes
    ----------
    metric
        A function of `kinji.records.metrics.<experiment>`; ``None`` while nothing here decides the claim (see `needs`).
    accept
        The range ``{"min": .., "max": ..}`` of the metric in which the claim holds; either end may be absent.
    scale
        The smallest scale at which a measurement decides the claim itself; below it, it decides its trend.
    """

    id: str
    experiment: str
    source: str
    statement: str
    published: str
    scale: str
    metric: str | None = None
    accept: dict[str, float] | None = None
    needs: str = ""
    why: str = ""


@dataclass(frozen=True)
class Verdict:
    """What the data says of one claim."""

    claim: Claim
    verdict: str
    ours: Estimate | None
    scale: str
    machine: str
    record: str
    note: str = ""


def load_claims() -> list[Claim]:
    """Read paper/claims.yaml; raise `KinjiError` naming the claim and key that is wrong."""
    entries = yaml.safe_load((layout.repository() / "paper" / "claims.yaml").read_text())
    claims = [_claim(entry) for entry in entries]
    if len({claim.id for claim in claims}) < len(claims):
        raise KinjiError("paper/claims.yaml holds two claims of one id: rename one.")
    return claims


def _claim(entry: dict[str, Any]) -> Claim:
    known = {field.name for field in fields(Claim)}
    if unknown := set(entry) - known:
        raise KinjiError(f"paper/claims.yaml, {entry.get('id')}: unknown {sorted(unknown)}; known: {sorted(known)}.")
    claim = Claim(**{**entry, "published": str(entry.get("published", ""))})
    if claim.metric and not claim.accept:
        raise KinjiError(f"paper/claims.yaml, {claim.id}: a claim with a metric needs `accept: {{min: .., max: ..}}`.")
    return claim


def judge(claim: Claim, table: pd.DataFrame | None) -> Verdict:
    """Decide `claim` from the tidy table of its experiment (`None` or empty: not run)."""
    if claim.metric is None or table is None or table.empty:
        return Verdict(claim, "not run", None, "", "", "")
    scale, machine, record = (" ".join(sorted(table[column].unique())) for column in tables.ORIGIN)
    try:
        ours = _metric(claim)(table)
    except (
        ArithmeticError,
        LookupError,
        ValueError,
    ) as error:  # a failed case leaves holes: they must not cost the report
        return Verdict(claim, "not run", None, scale, machine, record, f"the records do not decide it: {error!r}")
    return Verdict(claim, _decide(claim, ours, scale), ours, scale, machine, record)


def _metric(claim: Claim) -> Callable[[pd.DataFrame], Estimate | None]:
    metrics = importlib.import_module(f"kinji.records.metrics.{claim.experiment}")
    metric: Callable[[pd.DataFrame], Estimate | None] = getattr(metrics, str(claim.metric))
    return metric


def _decide(claim: Claim, ours: Estimate | None, scale: str) -> str:
    if ours is None or claim.accept is None or not (ours.low <= ours.value <= ours.high):  # NaN: nothing was measured
        return "not run"
    least, most = claim.accept.get("min", -float("inf")), claim.accept.get("max", float("inf"))
    if not (ours.low <= most and ours.high >= least):
        return "not reproduced"
    if not (least <= ours.low and ours.high <= most):
        return "inconclusive"
    if ours.modelled:
        return "modelled"
    own_scale = layout.SCALES.index(scale) >= layout.SCALES.index(claim.scale)
    return "reproduced" if own_scale else "trend reproduced"


def verdict_table(verdicts: list[Verdict]) -> pd.DataFrame:
    """Return the claims table: one row per verdict."""
    return pd.DataFrame([_row(verdict) for verdict in verdicts])


def _row(verdict: Verdict) -> dict[str, Any]:
    claim, ours = verdict.claim, verdict.ours
    return {
        "id": claim.id,
        "experiment": claim.experiment,
        "claim": claim.statement,
        "published": claim.published,
        "ours": f"{ours.value:.4g}" if ours else "",
        "interval": f"[{ours.low:.4g}, {ours.high:.4g}]" if ours and ours.low < ours.high else "",
        "accept": ", ".join(f"{bound} {value:g}" for bound, value in (claim.accept or {}).items()),
        "scale": verdict.scale,
        "machine": verdict.machine,
        "verdict": verdict.verdict,
        "record": verdict.record,
        "source": claim.source,
        "note": verdict.note or claim.why or claim.needs,
    }


def judge_all(scale: str) -> list[Verdict]:
    """Judge every claim from the records at `scale`: this run's, else the committed ones."""
    return [judge(claim, _table_or_none(claim.experiment, scale)) for claim in load_claims()]


def _table_or_none(experiment: str, scale: str) -> pd.DataFrame | None:
    try:
        return tables.load_table(experiment, scale)
    except tables.NoRecords:
        return None

"""Validated configuration of one scale: config/<scale>.yaml.

The schema is generated from the case classes of the experiments; `python -m kinji.workflow.config` writes it to
config/schema.json for editors, and a test fails when the two drift apart.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model
from pydantic.dataclasses import dataclass as validated

from kinji.errors import KinjiError
from kinji.experiments.cases import CASES, case_name
from kinji.records import layout


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


def _case_list(case: Any) -> Any:
    strict: Any = validated(case, config=ConfigDict(extra="forbid"), frozen=True, kw_only=True)
    return list[strict], Field(default=[], description=case.__doc__)


Experiments = create_model("Experiments", __base__=_Strict, **{name: _case_list(case) for name, case in CASES.items()})


class Request(_Strict):
    """What a case of one experiment asks of a cluster, where it differs from the scale's own."""

    runtime_minutes: int | None = Field(None, gt=0)
    memory_megabytes: int | None = Field(None, gt=0)
    gpus: int | None = Field(None, ge=0)
    disk_megabytes: int | None = Field(None, ge=0)


Requests = create_model("Requests", __base__=_Strict, **{name: (Request, Request.model_validate({})) for name in CASES})  # type: ignore[call-overload]


class Configuration(_Strict):
    """What runs at one scale, and on what."""

    device: Literal["cpu", "cuda"] = Field("cpu", description="Device of every experiment that can choose one.")
    threads: int | None = Field(
        None, gt=0, description="Threads of a timed case; null: every core Snakemake was given."
    )
    runtime_minutes: int = Field(60, gt=0, description="Time limit of one case on a cluster.")
    memory_megabytes: int = Field(8000, gt=0, description="Memory of one case on a cluster.")
    gpus: int = Field(0, ge=0, description="GPUs of one case on a cluster, or of each of its ranks.")
    disk_megabytes: int = Field(10, ge=0, description="Disk that one case fills, checkpoints included.")
    requests: Requests = Field(Requests.model_validate({}), description="What single experiments ask for instead.")  # type: ignore[valid-type]
    experiments: Experiments  # type: ignore[valid-type]


@cache
def load_config(scale: str) -> dict[str, Any]:
    """Read and validate config/<scale>.yaml; raise `KinjiError` naming a wrong key and the nearest valid one."""
    path = layout.repository() / "config" / f"{layout.check_scale(scale)}.yaml"
    given = yaml.safe_load(path.read_text())
    try:
        settings = Configuration.model_validate(given).model_dump(exclude={"experiments"})
    except ValidationError as error:
        raise KinjiError(f"config/{path.name}: " + "; ".join(_explain(e) for e in error.errors())) from error
    for experiment, cases in given["experiments"].items():
        _check_names(path, experiment, [case_name(case) for case in cases])
    return settings | {"experiments": given["experiments"]}


def check_overrides(given: dict[str, Any]) -> None:
    """Raise `KinjiError` if ``snakemake --config`` was given anything but the scale."""
    if unknown := sorted(set(given) - {"scale"}):
        raise KinjiError(
            f"--config knows only `scale`, got {', '.join(unknown)}. Edit config/<scale>.yaml for the rest."
        )


def _explain(error: Any) -> str:
    *parents, key = error["loc"]
    where = ".".join(map(str, parents)) or "top level"
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = _known_keys(parents)
        nearest = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)
        return f"unknown key {key!r} at {where}. Did you mean {nearest[0]!r}? Known: {', '.join(known)}"
    return f"{key!r} at {where}: {error['msg'].lower()}, got {error['input']!r}"


def _known_keys(parents: list[Any]) -> list[str]:
    if not parents:
        return list(Configuration.model_fields)
    if parents in (["experiments"], ["requests"]):
        return list(CASES)
    if parents[0] == "requests":
        return list(Request.model_fields)
    return [field.name for field in fields(CASES[parents[1]])]


def _check_names(path: Path, experiment: str, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise KinjiError(
            f"config/{path.name}: two cases of {experiment} would share the record {twice[0]}.json."
            " Give them a scalar parameter that tells them apart."
        )


def schema() -> dict[str, Any]:
    """Return the JSON schema of config/<scale>.yaml."""
    return TypeAdapter(Configuration).json_schema()


if __name__ == "__main__":
    (layout.repository() / "config" / "schema.json").write_text(json.dumps(schema(), indent=1) + "\n")

"""What the rules ask of the configuration: which cases there are, and the flags of each."""

from __future__ import annotations

import shlex
from typing import Any

import yaml

from kinji.errors import KinjiError
from kinji.experiments.cases import CASES, TUNINGS, as_parameters, case_name, launched_ranks
from kinji.records.layout import repository
from kinji.workflow.config import load_config


def cases(scale: str, experiment: str) -> list[str]:
    """Return the names of the cases of `experiment` at `scale`."""
    return [case_name(case) for case in load_config(scale)["experiments"].get(experiment, [])]


def experiments(scale: str) -> list[str]:
    """Return the experiments of the report that have cases at `scale`."""
    return [name for name, listed in load_config(scale)["experiments"].items() if listed and name not in TUNINGS]


def tunings(scale: str) -> list[str]:
    """Return the tuning stages that have cases at `scale`."""
    return [name for name, listed in load_config(scale)["experiments"].items() if listed and name in TUNINGS]


def record_paths(scale: str, experiment: str) -> list[str]:
    """Return the record of every case of `experiment` at `scale`."""
    return [f"results/{scale}/{experiment}/{case}.json" for case in cases(scale, experiment)]


def captions() -> dict[str, dict[str, str]]:
    """Return title, method and figure caption of every experiment."""
    content: dict[str, dict[str, str]] = yaml.safe_load((repository() / "paper" / "captions.yaml").read_text())
    return content


def flags(scale: str, experiment: str, case: str) -> str:
    """Return the command-line flags of one case; raise `KinjiError` if `scale` has no such case."""
    return " ".join(_flag(key, value) for key, value in _given(scale, experiment, case).items())


def parameters(scale: str, experiment: str, case: str) -> dict[str, Any]:
    """Return every parameter of one case, those left to their defaults too."""
    given = _given(scale, experiment, case)
    return as_parameters(CASES[experiment](**given))


def request(scale: str, experiment: str, case: str) -> dict[str, int]:
    """Return what one case asks of a cluster: minutes, megabytes of memory (a node) and disk, GPUs of all its ranks."""
    config = load_config(scale)
    own = config["requests"][experiment]
    asked = {name: config[name] if value is None else value for name, value in own.items()}
    return asked | {"gpus": asked["gpus"] * parameters(scale, experiment, case).get("ranks", 1)}


def ranks(scale: str, experiment: str, case: str) -> int:
    """Return how many processes have to be started for one case."""
    return launched_ranks(CASES[experiment](**_given(scale, experiment, case)))


def uses_gpus(scale: str) -> bool:
    """Return whether any case of `scale` asks for a GPU."""
    names = [*experiments(scale), *tunings(scale)]
    return any(request(scale, name, case)["gpus"] for name in names for case in cases(scale, name))


def _given(scale: str, experiment: str, case: str) -> dict[str, Any]:
    for given in load_config(scale)["experiments"].get(experiment, []):
        if case_name(given) == case:
            return dict(given)
    raise KinjiError(
        f"config/{scale}.yaml has no case {case} of {experiment}; it has: {', '.join(cases(scale, experiment))}."
    )


def _flag(key: str, value: Any) -> str:
    name = "--" + key.replace("_", "-")
    if isinstance(value, bool):
        return name if value else name.replace("--", "--no-", 1)
    values = value if isinstance(value, (list, tuple)) else [value]
    return " ".join(f"{name} {shlex.quote(str(v))}" for v in values)

"""The job of one case as a script for `sbatch`: what `snakemake --profile slurm` would submit, submitting nothing.

Options come from the plugin that submits, the command from Snakemake's own dry run. In a real call Snakemake stands in
between, starts the command itself and checks what came out.
"""

from __future__ import annotations

import io
import shlex
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from kinji.errors import KinjiError
from kinji.workflow.rules import cases, request
from kinji.workflow.site import JOB_PREFIX, read_site

PROFILE = Path("slurm/config.yaml")


def largest_case(scale: str, experiment: str) -> str:
    """Return the name of the case that asks for the most GPUs, the last of several."""
    names = cases(scale, experiment)
    if not names:
        raise KinjiError(f"config/{scale}.yaml has no case of {experiment}.")
    return max(reversed(names), key=lambda case: request(scale, experiment, case)["gpus"])


def job_script(scale: str, experiment: str, case: str) -> str:
    """Return the script of one case; raise `KinjiError` where there is no profile or no such case."""
    request(scale, experiment, case)
    if not PROFILE.exists():
        raise KinjiError(f"no {PROFILE} here: run from the root of the repository.")
    resources = _default_resources()
    job = _plan(resources, scale, f"results/{scale}/{experiment}/{case}.json")
    site = read_site(resources)
    assert site is not None
    options = "".join(f"#SBATCH {option}\n" for option in _options(job, f"{experiment} {case}"))
    return f"#!/bin/bash\n{options}{site.preamble()}\nset -euo pipefail\n{job.shellcmd.strip()}"


def _default_resources() -> Any:
    from snakemake.profiles import ProfileConfigFileParser
    from snakemake.resources import Resources

    with PROFILE.open() as stream:
        given = ProfileConfigFileParser().parse(stream)
    return Resources.parse(given["default-resources"], allow_expressions=True)


def _plan(resources: Any, scale: str, record: str) -> Any:
    """Return Snakemake's job that makes `record`, threads and resources as on a cluster."""
    from snakemake.api import SnakemakeApi
    from snakemake.settings.types import ConfigSettings, DAGSettings, OutputSettings, ResourceSettings

    quiet = io.StringIO()
    with redirect_stdout(quiet), redirect_stderr(quiet), SnakemakeApi(OutputSettings(dryrun=True)) as api:
        workflow = api.workflow(
            resource_settings=ResourceSettings(nodes=1, default_resources=resources),
            config_settings=ConfigSettings(config={"scale": scale}),
            snakefile=Path("Snakefile"),
        )
        dag = workflow.dag(DAGSettings(targets={record}, forcerun={record}))
        dag.execute_workflow(executor="dryrun")
        return next(job for job in workflow._workflow.dag.jobs if record in job.output)


def _options(job: Any, comment: str) -> list[str]:
    """Return what the plugin would give to sbatch, one option each."""
    from snakemake_executor_plugin_slurm.submit_string import get_submit_command
    from snakemake_executor_plugin_slurm.utils import set_gres_string

    names = {
        "run_uuid": JOB_PREFIX,
        "slurm_logfile": "logs/slurm/%j.log",
        "comment_str": comment,
        "account": f"-A {shlex.quote(job.resources.slurm_account)}" if job.resources.slurm_account else "",
        "partition": f"-p {shlex.quote(job.resources.slurm_partition)}",
        "workdir": None,
    }
    words = shlex.split(get_submit_command(job, names) + set_gres_string(job))
    options: list[str] = []
    for word in words[words.index("--parsable") + 1 :]:
        if word.startswith("-"):
            options.append(word)
        else:
            options[-1] += f" {shlex.quote(word)}"
    return options

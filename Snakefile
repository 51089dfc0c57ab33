"""The whole road: cases -> records -> tables -> figures, verdicts, notebooks -> report. See README.md."""

from snakemake.utils import min_version

min_version("9.20")

from pathlib import Path

from kinji.experiments.cases import CASES, LAUNCHED, sources
from kinji.records.layout import SCALES, check_scale
from kinji.records.provenance import source_hash
from kinji.workflow.config import check_overrides, load_config
from kinji.workflow.rules import (
    captions,
    experiments,
    flags,
    parameters,
    ranks,
    record_paths,
    request,
    tunings,
    uses_gpus,
)
from kinji.workflow.site import (
    check_site,
    read_site,
    start_over,
    wait_for_earlier_jobs,
)

check_overrides(config)
SCALE = check_scale(config.get("scale", "smoke"))
load_config(SCALE)
REFERENCE = sorted(path.stem for path in Path("paper/reference").glob("*.csv"))


# used with --software-deployment-method apptainer only
container: "slurm/kinji.sif"


wildcard_constraints:
    scale="|".join(SCALES),
    experiment="|".join(CASES),
    case="[^/]+",


include: "workflows/common.smk"
include: "workflows/int8_dgemm.smk"
include: "workflows/h2_scaling.smk"
include: "workflows/resnet50_table.smk"
include: "workflows/resnet50_tune.smk"
include: "workflows/step_breakdown.smk"
include: "workflows/imagenet_race.smk"
include: "workflows/from_records.smk"
include: "workflows/check_site.smk"


onstart:
    if SITE:
        check_site(SITE, uses_gpus(SCALE))
        if wait_for_earlier_jobs():
            workflow.persistence.unlock()
            start_over()


rule all:
    input:
        [record_paths(SCALE, experiment) for experiment in experiments(SCALE)],
        [f"results/{SCALE}/report.pdf", f"results/{SCALE}/report.html"],
        collect("results/{scale}/notebooks/{e}.html", scale=SCALE, e=experiments(SCALE)),


rule tune:
    input:
        collect("results/{scale}/{e}.csv", scale=SCALE, e=tunings(SCALE)),


rule figures:
    input:
        collect("figures/{scale}/{e}.pdf", scale=SCALE, e=experiments(SCALE)),


rule tables:
    input:
        collect("results/{scale}/tables/{e}.csv", scale=SCALE, e=experiments(SCALE)),


localrules:
    all,
    tune,
    figures,
    tables,

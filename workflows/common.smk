"""What the rules share: the configuration of a scale, the flags of a case, what a case asks for, who has the machine."""

SITE = read_site(workflow.resource_settings.default_resources)
SLURM_THREADS = 2  # of a timed case, where the configuration leaves it to the machine
STRICT = "set -euo pipefail\n"  # Snakemake's own, lost with shell.prefix; after `setup`: modules read unset variables

if SITE:
    preamble = SITE.preamble().replace("{", "{{").replace("}", "}}")
    shell.prefix(f"{preamble}\n{STRICT}")


def setting(name):
    return lambda wildcards: load_config(wildcards.scale)[name]


# Every parameter, defaults included: a changed default measures again.
def case_parameters(experiment):
    return lambda wildcards: parameters(wildcards.scale, experiment, wildcards.case)


def case_flags(experiment):
    return lambda wildcards: flags(wildcards.scale, experiment, wildcards.case)


# The folder of the site, for a case on ImageNet that names none.
def imagenet_flag(experiment):
    flag = '${KINJI_IMAGENET:+--data-path "$KINJI_IMAGENET"}'

    def chosen(wildcards):
        case = parameters(wildcards.scale, experiment, wildcards.case)
        return flag if case["images"] == "imagenet" and not case["data_path"] else ""

    return chosen


# A timed case takes every core there is, so that nothing else of the DAG runs beside it.
def every_core(wildcards):
    machine = SLURM_THREADS if SITE else workflow.cores
    return load_config(wildcards.scale)["threads"] or machine or 1


# What starts the ranks of a case: torchrun on one node, srun on several.
def launcher(experiment):
    def started(wildcards):
        size = ranks(wildcards.scale, experiment, wildcards.case)
        nodes = SITE.nodes(size) if SITE else 1
        if nodes > 1:
            return (
                f"srun --nodes {nodes} --ntasks {size} --cpus-per-task"
                f" {load_config(wildcards.scale)['threads'] or 1} --kill-on-bad-exit"
            )
        torchrun = f"torchrun --standalone --nproc-per-node {size} --no-python"
        return torchrun if size > 1 else ""

    return started


# What a case asks for: each retry gets the time of the first once more.
def case_resources(experiment):
    def asked(wildcards):
        return request(wildcards.scale, experiment, wildcards.case)

    def size(wildcards):
        return ranks(wildcards.scale, experiment, wildcards.case)

    def nodes(wildcards):
        return SITE.nodes(max(asked(wildcards)["gpus"], size(wildcards)))

    def on_slurm():
        return {
            "slurm_partition": lambda wildcards: SITE.partition(
                asked(wildcards)["gpus"]
            ),
            "gpu_model": lambda wildcards: (
                SITE.gpu_type if asked(wildcards)["gpus"] else ""
            ),
            "nodes": nodes,
            "turn": 1,
        }

    # ranks on several nodes are tasks of Slurm; those of one share a task, and its processors
    def of_ranks():
        return {
            "mpi": lambda wildcards: "srun" if nodes(wildcards) > 1 else "",
            "tasks": lambda wildcards: size(wildcards) if nodes(wildcards) > 1 else 1,
            "tasks_per_gpu": 0,
            "cpus_per_task": lambda wildcards, threads: (
                threads if nodes(wildcards) > 1 else threads * size(wildcards)
            ),
        }

    return {
        "runtime": lambda wildcards, attempt: attempt
        * asked(wildcards)["runtime_minutes"],
        "mem_mb": lambda wildcards: asked(wildcards)["memory_megabytes"],
        "gpu": lambda wildcards: asked(wildcards)["gpus"],
    } | (on_slurm() | (of_ranks() if experiment in LAUNCHED else {}) if SITE else {})


# What a job of ranks asks for: on one node, or on several by srun.
def probe_resources(device, ranks, nodes=1, launcher=None):
    gpus = ranks if device == "cuda" else 0
    asked = {"runtime": 10, "mem_mb": 4000 * ranks // nodes, "gpu": gpus}
    if SITE:
        asked |= {"slurm_partition": SITE.partition(gpus), "nodes": nodes}
        asked |= {"gpu_model": SITE.gpu_type if gpus else ""}
    if launcher:
        # without tasks_per_gpu the plugin would ask for `tasks` on each GPU
        asked |= {"mpi": launcher, "tasks": ranks, "tasks_per_gpu": 0}
    return asked

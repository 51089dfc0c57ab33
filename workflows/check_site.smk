"""`snakemake --profile slurm check_site`: does each kind of job run here? Minutes, before the days of scale `paper`."""

DEVICE = load_config(SCALE)["device"]
KINDS = ["one_process", "one_node"] + (["two_nodes", "mpi"] if SITE else [])


def probe_resources(ranks, nodes=1, launcher=None):
    gpus = ranks if DEVICE == "cuda" else 0
    asked = {"runtime": 10, "mem_mb": 4000 * ranks // nodes, "gpu": gpus}
    if SITE:
        asked |= {"slurm_partition": SITE.partition(gpus), "nodes": nodes}
        asked |= {"gpu_model": SITE.gpu_type if gpus else ""}
    if launcher:
        # without tasks_per_gpu the plugin would ask for `tasks` on each GPU
        asked |= {"mpi": launcher, "tasks": ranks, "tasks_per_gpu": 0}
    return asked


rule probe_one_process:
    output:
        "results/site/one_process.json",
    log:
        "logs/site/one_process.log",
    conda:
        "../environment.yml"
    resources:
        **probe_resources(ranks=1),
    message:
        "One process, one GPU if any"
    shell:
        "kinji probe --out {output} --device {DEVICE} > {log} 2>&1"


rule probe_one_node:
    output:
        "results/site/one_node.json",
    log:
        "logs/site/one_node.log",
    conda:
        "../environment.yml"
    threads: 2
    resources:
        **probe_resources(ranks=2),
    message:
        "Two ranks on one node, by torchrun"
    shell:
        "torchrun --standalone --nproc-per-node 2 --no-python"
        " kinji probe --ranks 2 --by torch --out {output} --device {DEVICE} > {log} 2>&1"


rule probe_two_nodes:
    output:
        "results/site/two_nodes.json",
    log:
        "logs/site/two_nodes.log",
    conda:
        "../environment.yml"
    resources:
        **probe_resources(ranks=2, nodes=2, launcher="srun"),
    message:
        "A rank on each of two nodes, by srun and NCCL (gloo without GPUs)"
    shell:
        "{resources.mpi} --nodes {resources.nodes} --ntasks {resources.tasks}"
        " kinji probe --ranks 2 --by torch --out {output} --device {DEVICE} > {log} 2>&1"


rule probe_mpi:
    output:
        "results/site/mpi.json",
    log:
        "logs/site/mpi.log",
    conda:
        "../environment.yml"
    resources:
        **probe_resources(ranks=2, nodes=2, launcher="srun --mpi=pmi2"),
    message:
        "A rank on each of two nodes, by srun and MPI"
    shell:
        "{resources.mpi} --nodes {resources.nodes} --ntasks {resources.tasks}"
        " kinji probe --ranks 2 --by mpi --out {output} --device {DEVICE} > {log} 2>&1"


rule check_site:
    input:
        collect("results/site/{kind}.json", kind=KINDS),


localrules:
    check_site,

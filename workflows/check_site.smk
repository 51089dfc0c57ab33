"""`snakemake --profile slurm check_site`: does each kind of job run here? Minutes, before the days of scale `paper`."""

DEVICE = load_config(SCALE)["device"]
KINDS = ["one_process", "one_node"] + (["two_nodes", "mpi"] if SITE else [])


rule probe_one_process:
    output:
        "results/site/one_process.json",
    log:
        "logs/site/one_process.log",
    conda:
        "../environment.yml"
    resources:
        **probe_resources(DEVICE, ranks=1),
    params:
        device=DEVICE,
    message:
        "One process, one GPU if any"
    shell:
        "kinji probe --out {output} --device {params.device} > {log} 2>&1"


rule probe_one_node:
    output:
        "results/site/one_node.json",
    log:
        "logs/site/one_node.log",
    conda:
        "../environment.yml"
    threads: 2
    resources:
        **probe_resources(DEVICE, ranks=2),
    params:
        device=DEVICE,
    message:
        "Two ranks on one node, by torchrun"
    shell:
        "torchrun --standalone --nproc-per-node 2 --no-python"
        " kinji probe --ranks 2 --by torch --out {output} --device {params.device} > {log} 2>&1"


rule probe_two_nodes:
    output:
        "results/site/two_nodes.json",
    log:
        "logs/site/two_nodes.log",
    conda:
        "../environment.yml"
    resources:
        **probe_resources(DEVICE, ranks=2, nodes=2, launcher="srun"),
    params:
        device=DEVICE,
    message:
        "A rank on each of two nodes, by srun and NCCL (gloo without GPUs)"
    shell:
        "{resources.mpi} --nodes {resources.nodes} --ntasks {resources.tasks}"
        " kinji probe --ranks 2 --by torch --out {output} --device {params.device} > {log} 2>&1"


rule probe_mpi:
    output:
        "results/site/mpi.json",
    log:
        "logs/site/mpi.log",
    conda:
        "../environment.yml"
    resources:
        **probe_resources(DEVICE, ranks=2, nodes=2, launcher="srun --mpi=pmi2"),
    params:
        device=DEVICE,
    message:
        "A rank on each of two nodes, by srun and MPI"
    shell:
        "{resources.mpi} --nodes {resources.nodes} --ntasks {resources.tasks}"
        " kinji probe --ranks 2 --by mpi --out {output} --device {params.device} > {log} 2>&1"


rule check_site:
    input:
        collect("results/site/{kind}.json", kind=KINDS),


localrules:
    check_site,

"""Jobs of seconds for the tests of faults, under the repository's own Snakefile and profile."""


rule toy:
    output:
        "toy/{seconds}_{name}.txt",
    log:
        "logs/toy/{seconds}_{name}.log",
    resources:
        runtime=5,
        mem_mb=200,
    shell:
        "mkdir -p toy logs/toy; echo ${{SLURM_JOB_ID:-}} ${{SLURMD_NODENAME:-}} >> toy/{wildcards.name}.started;"
        " sleep {wildcards.seconds}; echo done > {output}; echo slept > {log}"


rule toy_gpus:
    output:
        "toy/gpus.txt",
    resources:
        **probe_resources("cuda", ranks=2),
    shell:
        "echo $CUDA_VISIBLE_DEVICES $TOY_SETUP > {output}"


rule toy_gpus_of_two_nodes:
    output:
        "toy/gpus_of_two_nodes.txt",
    resources:
        **probe_resources("cuda", ranks=2, nodes=2, launcher="srun"),
    shell:
        "{resources.mpi} --nodes {resources.nodes} --ntasks {resources.tasks}"
        " sh -c 'echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES' > {output}"


rule toy_training:
    output:
        "toy/trained.txt",
    resources:
        runtime=lambda wildcards, attempt: attempt,
        mem_mb=200,
    shell:
        """
        mkdir -p toy $KINJI_CHECKPOINTS
        checkpoint=$KINJI_CHECKPOINTS/trained
        epoch=$(cat $checkpoint 2> /dev/null || echo 0)
        while ((epoch < 12)); do
          sleep 10
          epoch=$((epoch + 1))
          echo $epoch > $checkpoint.new
          mv $checkpoint.new $checkpoint
          echo $epoch >> toy/epochs
        done
        echo done > {output}
        """


rule toy_big_file:
    output:
        "full/big",
    resources:
        runtime=5,
        mem_mb=200,
    shell:
        "head -c ${{BIG_BYTES}} /dev/zero > {output}"

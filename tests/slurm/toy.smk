"""Jobs of seconds for the tests of faults, under the repository's own Snakefile and profile."""


# A job called held... ends when the test lets it: no test depends on how fast anything is.
rule toy:
    output:
        "toy/{name}.txt",
    log:
        "logs/toy/{name}.log",
    resources:
        runtime=10,
        mem_mb=200,
    shell:
        """
        mkdir -p toy
        echo ${{SLURM_JOB_ID:-}} ${{SLURMD_NODENAME:-}} >> toy/{wildcards.name}.started
        echo started > {log}
        if [[ {wildcards.name} = held* ]]; then
          until [[ -e toy/released ]]; do sleep 0.2; done
        fi
        echo done > {output}
        """


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


rule toy_scratch:
    output:
        "toy/scratched.txt",
    resources:
        runtime=10,
        mem_mb=200,
    shell:
        "head -c 4000000 /dev/zero > $TMPDIR/big; wc -c < $TMPDIR/big > {output}"

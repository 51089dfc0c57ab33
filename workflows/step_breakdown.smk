rule measure_step_breakdown:
    output:
        record="results/{scale}/step_breakdown/{case}.json",
    log:
        "logs/{scale}/step_breakdown/{case}.log",
    benchmark:
        "logs/{scale}/step_breakdown/{case}.benchmark.tsv"
    conda:
        "../environment.yml"
    threads: every_core
    resources:
        **case_resources("step_breakdown"),
    params:
        flags=case_flags("step_breakdown"),
        parameters=case_parameters("step_breakdown"),
        device=setting("device"),
        source=source_hash(sources("step_breakdown")),
    message:
        "Parts of a training step, {wildcards.case} at scale {wildcards.scale}"
    shell:
        "kinji step-breakdown {params.flags} --out {output.record} --device {params.device}"
        " --threads {threads} --record-failure 2>&1 | tee {log}"

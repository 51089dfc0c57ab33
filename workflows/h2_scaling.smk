rule measure_h2_scaling:
    output:
        record="results/{scale}/h2_scaling/{case}.json",
    log:
        "logs/{scale}/h2_scaling/{case}.log",
    benchmark:
        "logs/{scale}/h2_scaling/{case}.benchmark.tsv"
    conda:
        "../environment.yml"
    threads: every_core
    resources:
        **case_resources("h2_scaling"),
    params:
        flags=case_flags("h2_scaling"),
        parameters=case_parameters("h2_scaling"),
        device=setting("device"),
        source=source_hash(sources("h2_scaling")),
    message:
        "H²-ULV against LORAPO, {wildcards.case} at scale {wildcards.scale}"
    shell:
        "kinji h2-scaling {params.flags} --out {output.record} --device {params.device}"
        " --threads {threads} --record-failure 2>&1 | tee {log}"

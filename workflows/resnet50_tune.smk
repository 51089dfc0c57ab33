rule measure_resnet50_tune:
    output:
        record="results/{scale}/resnet50_tune/{case}.json",
    log:
        "logs/{scale}/resnet50_tune/{case}.log",
    benchmark:
        "logs/{scale}/resnet50_tune/{case}.benchmark.tsv"
    conda:
        "../environment.yml"
    threads: 1
    resources:
        **case_resources("resnet50_tune"),
    params:
        flags=case_flags("resnet50_tune"),
        parameters=case_parameters("resnet50_tune"),
        device=setting("device"),
        source=source_hash(sources("resnet50_tune")),
    message:
        "Tuning, {wildcards.case} at scale {wildcards.scale}"
    shell:
        "kinji resnet50-tune {params.flags} --out {output.record} --device {params.device}"
        " --threads {threads} --record-failure 2>&1 | tee {log}"

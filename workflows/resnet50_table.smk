rule measure_resnet50_table:
    output:
        record="results/{scale}/resnet50_table/{case}.json",
    log:
        "logs/{scale}/resnet50_table/{case}.log",
    benchmark:
        "logs/{scale}/resnet50_table/{case}.benchmark.tsv"
    conda:
        "../environment.yml"
    threads: lambda wildcards: load_config(wildcards.scale)["threads"] or 1
    resources:
        **case_resources("resnet50_table"),
    params:
        launcher=launcher("resnet50_table"),
        flags=case_flags("resnet50_table"),
        imagenet=imagenet_flag("resnet50_table"),
        parameters=case_parameters("resnet50_table"),
        device=setting("device"),
        source=source_hash(sources("resnet50_table")),
    message:
        "Training, {wildcards.case} at scale {wildcards.scale}"
    shell:
        "{params.launcher} kinji resnet50-table {params.flags} {params.imagenet} --out {output.record} --device {params.device}"
        " --threads {threads} --record-failure 2>&1 | tee {log}"

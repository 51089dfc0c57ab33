rule measure_imagenet_race:
    input:
        steps=lambda w: record_paths(w.scale, "step_breakdown"),
    output:
        record="results/{scale}/imagenet_race/{case}.json",
    log:
        "logs/{scale}/imagenet_race/{case}.log",
    benchmark:
        "logs/{scale}/imagenet_race/{case}.benchmark.tsv"
    conda:
        "../environment.yml"
    threads: 1
    resources:
        **case_resources("imagenet_race"),
    params:
        flags=case_flags("imagenet_race"),
        parameters=case_parameters("imagenet_race"),
        source=source_hash(sources("imagenet_race")),
    message:
        "The race to train ImageNet, {wildcards.case} at scale {wildcards.scale}"
    shell:
        "KINJI_SCALE={wildcards.scale} kinji imagenet-race {params.flags} --out {output.record}"
        " --threads {threads} --record-failure 2>&1 | tee {log}"

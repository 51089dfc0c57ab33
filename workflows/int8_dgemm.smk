rule measure_int8_dgemm:
    output:
        record="results/{scale}/int8_dgemm/{case}.json",
    log:
        "logs/{scale}/int8_dgemm/{case}.log",
    benchmark:
        "logs/{scale}/int8_dgemm/{case}.benchmark.tsv"
    conda:
        "../environment.yml"
    threads: every_core
    resources:
        **case_resources("int8_dgemm"),
    params:
        flags=case_flags("int8_dgemm"),
        parameters=case_parameters("int8_dgemm"),
        device=setting("device"),
        source=source_hash(sources("int8_dgemm")),
    message:
        "INT8 DGEMM, {wildcards.case} at scale {wildcards.scale}"
    shell:
        "kinji int8-dgemm {params.flags} --out {output.record} --device {params.device}"
        " --threads {threads} --record-failure 2>&1 | tee {log}"

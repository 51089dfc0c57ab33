"""What is made of the records; no rule here runs an experiment."""


rule collect_table:
    input:
        records=lambda w: record_paths(w.scale, w.experiment),
    output:
        table="results/{scale}/{experiment}.csv",
    log:
        "logs/{scale}/collect/{experiment}.log",
    conda:
        "../environment.yml"
    params:
        source=source_hash(["records"]),
    message:
        "Tidy table of {wildcards.experiment} at scale {wildcards.scale}"
    shell:
        "kinji collect {wildcards.experiment} {input.records} --scale {wildcards.scale}"
        " --out {output.table} 2>&1 | tee {log}"


rule draw_figure:
    input:
        table="results/{scale}/{experiment}.csv",
        script="figures/{experiment}.py",
        reference=collect("paper/reference/{table}.csv", table=REFERENCE),
    output:
        pdf="figures/{scale}/{experiment}.pdf",
        png=report(
            "figures/{scale}/{experiment}.png",
            caption="../paper/captions/figure.rst",
            category="Figures",
            labels={"experiment": "{experiment}", "scale": "{scale}"},
        ),
    log:
        "logs/{scale}/figures/{experiment}.log",
    conda:
        "../environment.yml"
    params:
        source=source_hash(["records", "report/figures", "report/style"]),
        caption=lambda w: captions()[w.experiment]["figure"],
    message:
        "Figure of {wildcards.experiment} at scale {wildcards.scale}"
    shell:
        "kinji figure {wildcards.experiment} --scale {wildcards.scale} > {log} 2>&1"


rule tabulate_summary:
    input:
        table="results/{scale}/{experiment}.csv",
    output:
        csv=report(
            "results/{scale}/tables/{experiment}.csv",
            caption="../paper/captions/table.rst",
            category="Tables",
            labels={"experiment": "{experiment}", "scale": "{scale}"},
        ),
        tex="results/{scale}/tables/{experiment}.tex",
    log:
        "logs/{scale}/tables/{experiment}.log",
    conda:
        "../environment.yml"
    params:
        source=source_hash(
            ["report/summaries", "records/summaries", "records/estimates"]
        ),
    message:
        "Published table of {wildcards.experiment} at scale {wildcards.scale}"
    shell:
        "kinji table {wildcards.experiment} --scale {wildcards.scale} > {log} 2>&1"


rule judge_claims:
    input:
        tables=lambda w: collect("results/{{scale}}/{e}.csv", e=experiments(w.scale)),
        claims="paper/claims.yaml",
        reference=collect("paper/reference/{table}.csv", table=REFERENCE),
    output:
        table=report(
            "results/{scale}/claims.csv",
            caption="../paper/captions/claims.rst",
            category="Claims",
            labels={"scale": "{scale}"},
        ),
    log:
        "logs/{scale}/claims.log",
    conda:
        "../environment.yml"
    params:
        source=source_hash(["records"]),
    message:
        "Verdicts at scale {wildcards.scale}"
    shell:
        "kinji claims --scale {wildcards.scale} --out {output.table} > {log} 2>&1"


rule execute_notebook:
    input:
        table="results/{scale}/{experiment}.csv",
        notebook="notebooks/{experiment}.py",
        script="figures/{experiment}.py",
        reference=collect("paper/reference/{table}.csv", table=REFERENCE),
        claims="paper/claims.yaml",
    output:
        page="results/{scale}/notebooks/{experiment}.html",
    log:
        "logs/{scale}/notebooks/{experiment}.log",
    conda:
        "../environment.yml"
    params:
        source=source_hash(["records", "report"]),
    message:
        "Notebook of {wildcards.experiment} at scale {wildcards.scale}"
    shell:
        "kinji notebook {wildcards.experiment} --scale {wildcards.scale} --out {output.page} > {log} 2>&1"


rule write_report:
    input:
        claims="results/{scale}/claims.csv",
        figures=lambda w: collect("figures/{{scale}}/{e}.pdf", e=experiments(w.scale)),
        tables=lambda w: collect(
            "results/{{scale}}/tables/{e}.csv", e=experiments(w.scale)
        ),
        source=["paper/report.typ", "paper/captions.yaml"],
    output:
        pdf="results/{scale}/report.pdf",
        html="results/{scale}/report.html",
    log:
        "logs/{scale}/report.log",
    conda:
        "../environment.yml"
    params:
        source=source_hash(["report/build"]),
    message:
        "Report at scale {wildcards.scale}"
    shell:
        "kinji report --scale {wildcards.scale} > {log} 2>&1"

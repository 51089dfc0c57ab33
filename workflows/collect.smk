"""Targets: what people ask for by name."""


rule all:
    default_target: True
    input:
        [f"results/{SCALE}/report.pdf", f"results/{SCALE}/report.html"],
        collect("results/{scale}/notebooks/{e}.html", scale=SCALE, e=experiments(SCALE)),


rule tune:
    input:
        collect("results/{scale}/{e}.csv", scale=SCALE, e=tunings(SCALE)),


rule figures:
    input:
        collect("figures/{scale}/{e}.pdf", scale=SCALE, e=experiments(SCALE)),


rule tables:
    input:
        collect("results/{scale}/tables/{e}.csv", scale=SCALE, e=experiments(SCALE)),

"""What the rules share: the configuration of a scale, the flags of a case, who has the machine to itself."""


def setting(name):
    return lambda wildcards: load_config(wildcards.scale)[name]


# Every parameter, defaults included: a changed default measures again.
def case_parameters(experiment):
    return lambda wildcards: parameters(wildcards.scale, experiment, wildcards.case)


def case_flags(experiment):
    return lambda wildcards: flags(wildcards.scale, experiment, wildcards.case)


# A timed case takes every core there is, so that nothing else of the DAG runs beside it.
def every_core(wildcards):
    return load_config(wildcards.scale)["threads"] or workflow.cores or 1

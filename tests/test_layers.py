"""Who may know whom: read off the import statements."""

import ast
from pathlib import Path

import pytest

import kinji
from kinji.experiments.cases import CASES, sources

PACKAGE = Path(kinji.__file__).parent
METHODS = ("kfac", "hmatrix", "gemm", "information")
HEAVY = {"torch", "torchvision", "numba", "pydantic", "snakemake"}


def imports(file):
    """The modules that `file` imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def kinji_packages(*files):
    return {name.split(".")[1] for file in files for name in imports(file) if name.startswith("kinji.")}


@pytest.mark.parametrize("method", [name for name in METHODS if (PACKAGE / name).exists()])
def test_a_method_knows_only_itself(method):
    assert kinji_packages(*(PACKAGE / method).rglob("*.py")) <= {method}


def test_training_knows_methods_only():
    assert kinji_packages(*(PACKAGE / "training").rglob("*.py")) <= {"training", *METHODS}


def test_records_know_no_method_and_no_report():
    assert kinji_packages(*(PACKAGE / "records").rglob("*.py")) <= {"records", "errors", "__version__"}


@pytest.mark.parametrize("experiment", CASES)
def test_the_source_hash_of_an_experiment_covers_what_it_imports(experiment):
    used = kinji_packages(PACKAGE / "experiments" / f"{experiment}.py")
    reached = set().union(*(kinji_packages(*(PACKAGE / name).rglob("*.py")) for name in used & {"training", *METHODS}))
    assert (used | reached) & {"training", *METHODS} <= set(sources(experiment))


@pytest.mark.parametrize("module", ["experiments/cases", "records/tables", "records/claims", "workflow/rules", "cli"])
def test_what_every_command_imports_is_light(module):
    top = ast.parse((PACKAGE / f"{module}.py").read_text()).body
    names = {alias.name.split(".")[0] for node in top if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module).split(".")[0] for node in top if isinstance(node, ast.ImportFrom)}
    assert not names & HEAVY


def test_experiments_need_no_workflow_package():
    """A GPU machine without Snakemake and pydantic runs every experiment by its own command."""
    files = [*(PACKAGE / "experiments").glob("*.py"), *(PACKAGE / "records").rglob("*.py"), PACKAGE / "cli.py"]
    tops = {name.split(".")[0] for file in files for name in imports(file)}
    assert not tops & {"snakemake", "pydantic", "jupytext", "nbclient", "typst"}

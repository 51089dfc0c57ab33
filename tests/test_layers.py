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


def modules_behind(module):
    """The modules of kinji, as paths without ending, that `module` imports, and those that they import."""
    reached, waiting = set(), [module]
    while waiting:
        file = PACKAGE / f"{waiting[-1]}.py"
        file = file if file.exists() else PACKAGE / waiting[-1] / "__init__.py"
        reached.add(waiting.pop())
        waiting += [name for name in map(as_module, imports(file)) if name and name not in reached]
    return reached


def as_module(name):
    """The path of the module in an imported name such as ``kinji.gemm.products.exact_bits``; None if not of kinji."""
    top, _, rest = name.partition(".")
    path = Path(*rest.split("."))
    paths = [path, *path.parents] if top == "kinji" and rest else []
    return next(
        (
            p.as_posix()
            for p in paths
            if (PACKAGE / p).with_suffix(".py").exists() or (PACKAGE / p / "__init__.py").exists()
        ),
        None,
    )


@pytest.mark.parametrize("experiment", CASES)
def test_the_source_hash_of_an_experiment_covers_what_it_imports(experiment):
    behind = modules_behind(f"experiments/{experiment}")
    hashed = {path for path in behind if any(Path(path).is_relative_to(source) for source in sources(experiment))}
    harmless = {path for path in behind if path in (".", "errors", "experiments/cases") or path.startswith("records")}
    packages = {path for path in behind if (PACKAGE / path / "__init__.py").exists()}  # re-exports: their modules count
    assert behind - hashed - harmless - packages == set()


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

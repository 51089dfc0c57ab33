"""Shared by all tests: a throw-away repository, and the making of records."""

import fcntl
import os
import pickle
import shutil
from multiprocessing import set_forkserver_preload
from pathlib import Path

import pytest
from hypothesis import settings

from kinji.records import Record, write_record
from kinji.records.layout import SCALES

# property tests draw the same examples in every run, and a busy machine fails none of them
settings.register_profile("kinji", deadline=None, derandomize=True)
settings.load_profile("kinji")

# imported once, not once for each process that a test starts; torch imports the last when it makes an optimizer
set_forkserver_preload(["kinji.cli", "kinji.experiments.resnet50_table", "numba", "sklearn.datasets", "torch._dynamo"])

ROOT = Path(__file__).parents[1]
TRACKED = ("paper", "config", "workflows", "notebooks", "figures", "slurm")


def pytest_collection_modifyitems(items):
    """The longest tests first: none of them is left over when the other workers have no more to do."""
    items.sort(key=lambda item: item.path.name != "test_dag.py")


def ignored(folder, names):
    """What a copy leaves out: figures already drawn, and caches."""
    return {name for name in names if name == "__pycache__" or (Path(folder).name == "figures" and name in SCALES)}


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """Have something computed by one worker, in a folder, though the tests that look at it may run on several."""
    base = tmp_path_factory.getbasetemp()
    session = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def result(name, work):
        folder = session / name
        folder.mkdir(exist_ok=True)
        with (folder / "result").open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if file.seek(0, os.SEEK_END) == 0:
                pickle.dump(work(folder), file)
            file.seek(0)
            return pickle.load(file)

    return result


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A copy of the repository without results, entered; the package itself is the one under test."""
    for folder in TRACKED:
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    shutil.copy(ROOT / "Snakefile", tmp_path)
    shutil.copy(ROOT / "environment.yml", tmp_path)
    (tmp_path / "results").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KINJI_SCALE", raising=False)
    return tmp_path


@pytest.fixture
def put_record():
    """Write a record of the given fields to a path."""

    def put(path, observations, *, error=None, machine="test-machine", **parameters):
        record = Record(
            experiment=path.parent.name,
            parameters=parameters,
            observations=observations,
            provenance={"machine": machine, "finished": "2026-01-01T00:00:00+00:00", "command": ["kinji"]},
            error=error,
        )
        write_record(record, path)
        return record

    return put

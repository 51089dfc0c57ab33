"""Shared by all tests: a throw-away repository, and the making of records."""

import shutil
from pathlib import Path

import pytest
from hypothesis import settings

from kinji.records import Record, write_record
from kinji.records.layout import SCALES

# property tests draw the same examples in every run, and a busy machine fails none of them
settings.register_profile("kinji", deadline=None, derandomize=True)
settings.load_profile("kinji")

ROOT = Path(__file__).parents[1]
TRACKED = ("paper", "config", "workflows", "notebooks", "figures", "slurm")


def pytest_collection_modifyitems(items):
    """The longest tests first: none of them is left over when the other workers have no more to do."""
    items.sort(key=lambda item: item.path.name != "test_dag.py")


def ignored(folder, names):
    """What a copy leaves out: figures already drawn, and caches."""
    return {name for name in names if name == "__pycache__" or (Path(folder).name == "figures" and name in SCALES)}


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

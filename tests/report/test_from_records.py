"""Figures, tables, notebooks and the report, from the committed measurements: what a fresh clone can do at once."""

import csv
from pathlib import Path

import pytest

from kinji.errors import KinjiError
from kinji.experiments.cases import EXPERIMENTS
from kinji.records import load_records, load_table, read_record, write_record
from kinji.records.keep import forget_failed, keep_records
from kinji.report.figures import _draw_or_say_why, draw_figure
from kinji.report.notebooks import execute_notebook
from kinji.report.summaries import write_summary

each_experiment = pytest.mark.parametrize("experiment", EXPERIMENTS)


@each_experiment
def test_a_figure_is_drawn_without_an_experiment(repository, experiment):
    for file in draw_figure(experiment, "smoke"):
        assert file.stat().st_size > 5000
    assert not list((repository / "results").rglob("*.json"))


@each_experiment
def test_the_published_table_is_written_as_csv_and_booktabs(repository, experiment):
    table, latex = write_summary(experiment, "smoke")
    rows = list(csv.reader(table.open()))
    assert len(rows) > 1 and latex.read_text().count(r"\\") == len(rows)
    assert all(rule in latex.read_text() for rule in (r"\toprule", r"\midrule", r"\bottomrule"))


@each_experiment
def test_a_notebook_runs_against_committed_records(repository, experiment):
    assert "<html" in execute_notebook(experiment, "smoke").read_text()


@each_experiment
def test_where_every_case_failed_the_figure_and_the_table_say_why(repository, experiment, put_record):
    failed = {"message": "MemoryError: 3 TB", "traceback": ""}
    put_record(Path(f"results/smoke/{experiment}/a.json"), [], error=failed, n=1)
    note = _draw_or_say_why(experiment, "smoke", None)
    assert "a: MemoryError: 3 TB" in note.texts[0].get_text()
    assert "MemoryError: 3 TB" in write_summary(experiment, "smoke")[0].read_text()


def test_a_failing_notebook_cell_is_named(repository):
    notebook = repository / "notebooks" / "int8_dgemm.py"
    notebook.write_text(notebook.read_text() + "\n# %%\nraise ArithmeticError('seven')\n")
    with pytest.raises(KinjiError, match=r"notebooks/int8_dgemm\.py failed at scale smoke: ArithmeticError: seven"):
        execute_notebook("int8_dgemm", "smoke")


def test_kept_records_are_found_again_and_failed_ones_are_not_kept(repository, put_record):
    own = Path("results/smoke/int8_dgemm")
    put_record(own / "good.json", [{"quantity": "time", "x": 1}], n=7)
    put_record(own / "bad.json", [], error={"message": "boom", "traceback": ""})
    assert [copy.name for copy in keep_records("smoke")] == ["good.json"]
    assert [path.name for path in forget_failed("smoke")] == [str(own / "bad.json").split("/")[-1]]
    kept = load_records("int8_dgemm", "smoke", machine="test-machine")
    assert [record.parameters for record in kept] == [{"n": 7}]


def test_a_table_holds_one_row_per_observation_and_its_origin(repository, put_record):
    put_record(Path("results/smoke/int8_dgemm/b.json"), [{"x": 1}, {"x": 2}], n=7, phi=[1, 2])
    table = load_table("int8_dgemm", "smoke")
    expected = [{"n": 7, "x": x, "scale": "smoke", "machine": "test-machine", "record": "b"} for x in (1, 2)]
    assert table.to_dict("records") == expected


def test_the_committed_h2_matrices_are_hierarchical_and_grow(repository):
    rows = load_table("h2_scaling", "smoke")
    largest = rows[(rows["quantity"] == "result") & (rows["method"] == "h2_ulv") & (rows["n"] == rows["n"].max())]
    assert (largest["levels"] >= 3).all() and len(largest)


def test_a_committed_record_is_whole(repository):
    paths = sorted((repository / "paper" / "measured").rglob("*.json"))
    assert {path.parent.name for path in paths} >= set(EXPERIMENTS)
    for path in paths:
        record = read_record(path)
        assert record.error is None and record.provenance["source_hash"]
        write_record(record, repository / "copy.json")
        assert read_record(repository / "copy.json") == record

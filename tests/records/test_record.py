import errno
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinji.records import Record, RecordError, fingerprint, read_record, write_record

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
ROWS = st.lists(st.dictionaries(st.text(), SCALARS))


def record(observations=(), **fields):
    return Record(experiment="e", parameters={"n": 1}, observations=list(observations), provenance={}, **fields)


@given(ROWS)
def test_what_is_written_is_read(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("records") / "a.json"
    write_record(record(rows), path)
    assert read_record(path) == record(rows)


def test_a_full_disk_leaves_the_old_record_and_no_rest(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_record(record([{"x": 1}]), path)

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RecordError, match=r"a\.json: No space left on device\. Free space"):
        write_record(record([{"x": 2}]), path)
    assert read_record(path).observations == [{"x": 1}]
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_every_truncation_is_refused(tmp_path):
    path = tmp_path / "a.json"
    write_record(record([{"x": 1.5, "y": "z"}]), path)
    text = path.read_text().rstrip()
    for length in range(len(text)):
        path.write_text(text[:length])
        with pytest.raises(RecordError, match="Delete it and run the case again"):
            read_record(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema version 2, this kinji reads 1"),
        ({"schema_version": None}, "schema version None"),
        ({"surprise": 1}, "surprise"),
        ({"observations": [1]}, "flat objects"),
    ],
)
def test_what_is_not_a_record_of_this_version_is_refused(tmp_path, change, message):
    path = tmp_path / "a.json"
    write_record(record(), path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(RecordError, match=message):
        read_record(path)


def test_a_missing_record_says_so(tmp_path):
    with pytest.raises(RecordError, match="no record at"):
        read_record(tmp_path / "a.json")


def test_fingerprint_sees_results_and_parameters_but_no_times():
    base = record([{"error": 1.0, "factor_seconds": 1.0, "peak_bytes": 5}])
    assert fingerprint(base) == fingerprint(record([{"error": 1.0, "factor_seconds": 2.0, "peak_bytes": 6}]))
    assert fingerprint(base) != fingerprint(record([{"error": 1.1, "factor_seconds": 1.0, "peak_bytes": 5}]))
    assert fingerprint(base) != fingerprint(Record(**{**vars(base), "parameters": {"n": 2}}))

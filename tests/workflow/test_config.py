import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml

from kinji.errors import KinjiError
from kinji.experiments.cases import CASES, Resnet50TableCase, as_parameters, case_name
from kinji.experiments.resnet50_table.checks import check
from kinji.records import load_reference
from kinji.records.layout import SCALES
from kinji.workflow.config import check_overrides, load_config, schema
from kinji.workflow.rules import flags

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def forget():
    load_config.cache_clear()
    yield
    load_config.cache_clear()


def edit(change):
    path = Path("config/smoke.yaml")
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content))


@pytest.mark.parametrize("scale", SCALES)
def test_each_scale_is_valid(repository, scale):
    assert load_config(scale)["experiments"]


@pytest.mark.parametrize("scale", SCALES)
def test_each_training_can_be_run_and_its_record_has_a_name_that_fits(repository, scale):
    for given in load_config(scale)["experiments"]["resnet50_table"]:
        check(replace(Resnet50TableCase(**given), data_path="somewhere"))
        assert len(case_name(given)) < 240  # of 255, an ending and that of a temporary file


def test_the_paper_scale_trains_every_published_row(repository):
    cases = pd.DataFrame(load_config("paper")["experiments"]["resnet50_table"]).query("optimizer == 'kfac'")
    hyperparameters = ["batch", "lr", "momentum", "damping"]
    published = load_reference()["resnet50_spngd"][hyperparameters]
    pd.testing.assert_frame_equal(cases[hyperparameters].reset_index(drop=True), published, check_dtype=False)


def test_the_committed_schema_is_the_generated_one():
    assert json.loads((ROOT / "config" / "schema.json").read_text()) == schema(), "run `make schema`"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(devise="cpu"), "unknown key 'devise' at top level. Did you mean 'device'"),
        (lambda c: c["experiments"].update(int8_gemm=[]), "unknown key 'int8_gemm' .* Did you mean 'int8_dgemm'"),
        (
            lambda c: c["experiments"]["int8_dgemm"][0].update(repetition=1),
            "'repetition' .* Did you mean 'repetitions'",
        ),
        (lambda c: c["experiments"]["int8_dgemm"][0].update(n="many"), "'n' at experiments.int8_dgemm.0: .*got 'many'"),
        (lambda c: c["experiments"]["int8_dgemm"][0].pop("n"), "field required"),
        (lambda c: c["experiments"]["int8_dgemm"].append(c["experiments"]["int8_dgemm"][0]), "share the record"),
        (lambda c: c.pop("experiments"), "'experiments' at top level: field required"),
        (lambda c: c.update(threads=0), "'threads' at top level"),
    ],
)
def test_a_wrong_configuration_names_file_key_and_nearest(repository, change, message):
    edit(change)
    with pytest.raises(KinjiError, match=rf"config/smoke\.yaml: .*{message}"):
        load_config("smoke")


def test_an_unknown_scale_names_the_known_ones(repository):
    with pytest.raises(KinjiError, match="unknown scale 'smok': choose one of smoke, workstation, paper"):
        load_config("smok")


def test_only_the_scale_is_set_on_the_command_line():
    check_overrides({"scale": "paper"})
    with pytest.raises(KinjiError, match="knows only `scale`, got device"):
        check_overrides({"scale": "paper", "device": "cuda"})


def test_the_flags_of_a_case_make_that_case(repository, monkeypatch):
    """config -> flags -> command line -> case is the identity, for every case of every scale."""
    from typer.testing import CliRunner

    import kinji.experiments.run
    from kinji.cli import app

    seen = []
    monkeypatch.setattr(kinji.experiments.run, "run_case", lambda case, **_: seen.append(case))
    for scale in SCALES:
        for experiment, listed in load_config(scale)["experiments"].items():
            for given in listed:
                words = flags(scale, experiment, case_name(given)).split()
                result = CliRunner().invoke(app, [experiment.replace("_", "-"), *words, "--out", "x.json"])
                assert result.exit_code == 0, result.output
                expected = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
                assert seen.pop() == CASES[experiment](**expected)


def test_an_unknown_case_names_the_known_ones(repository):
    with pytest.raises(KinjiError, match=r"has no case n~1 of int8_dgemm; it has: .*n~"):
        flags("smoke", "int8_dgemm", "n~1")


def test_tuples_survive_as_lists():
    case = CASES["int8_dgemm"](n=8, phi=(0.1,))
    assert as_parameters(case)["phi"] == [0.1]

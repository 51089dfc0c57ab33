"""`kinji predict-step`: a table by part, the range of trust, and clear errors."""

import pytest
from typer.testing import CliRunner

from kinji.cli import app

RUN = CliRunner()
ASKED = ["predict-step", "--model", "resnet50", "--gpus", "1024", "--batch", "32", "--fabric", "abci"]


def test_a_published_plan_is_inside_the_range_of_trust():
    done = RUN.invoke(app, ASKED)
    assert done.exit_code == 0, done.output
    for words in ("forward", "K-FAC communication", "whole step", "examples a second", "median error of unseen steps"):
        assert words in done.output
    assert "Outside that range" not in done.output


def test_what_lies_outside_is_said():
    done = RUN.invoke(app, ["predict-step", "--model", "bert-base", "--gpus", "4096", "--fabric", "ethernet"])
    assert done.output.count("Outside that range") == 4


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--model", "resnet5"], "Did you mean 'resnet50'"),
        (["--gpus", "0"], "at least one GPU"),
        (["--batch", "0"], "at least 1"),
        (["--fabric", "infiniband"], "no fabric 'infiniband'"),
        (["--fisher", "exact"], "fisher is one of"),
        (["--refreshed", "2"], "refreshed=2.0"),
    ],
)
def test_a_mistake_is_named(changed, message):
    done = RUN.invoke(app, [*ASKED, *changed])
    assert done.exit_code != 0 and isinstance(done.exception, ValueError) and message in str(done.exception)

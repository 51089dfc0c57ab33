"""The lock, the conda environment and the package metadata name one set of versions."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PYTHON = {"python_version": "3.11", "python_full_version": "3.11.13"}


def locked() -> dict[str, str]:
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements.lock").read_text().splitlines()]
    pins = [Requirement(line) for line in lines if line]
    here = [pin for pin in pins if pin.marker is None or pin.marker.evaluate(PYTHON)]
    return {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in here}


def conda() -> dict[str, str]:
    *_, pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    return dict(line.split("==") for line in pip["pip"])


def wanted() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [lines for extra, lines in project["optional-dependencies"].items() if extra != "gpu"]
    return [Requirement(line) for lines in (project["dependencies"], *extras) for line in lines]


def test_environment_yml_says_what_the_lock_says():
    assert conda() == {name: version for name, version in locked().items() if name in conda()}
    assert set(conda()) == {canonicalize_name(requirement.name) for requirement in wanted()}


@pytest.mark.parametrize("requirement", wanted(), ids=lambda requirement: requirement.name)
def test_lock_lies_within_the_ranges_of_pyproject(requirement):
    assert requirement.specifier.contains(locked()[canonicalize_name(requirement.name)])


def test_lock_names_no_index():
    assert not re.search(r"https?://|--(extra-)?index-url|--find-links|file:", (ROOT / "requirements.lock").read_text())

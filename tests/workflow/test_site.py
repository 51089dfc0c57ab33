"""The knobs without a cluster: `sinfo` is a script here; tests/slurm has the real one."""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from snakemake.resources import Resources

from kinji.errors import KinjiError
from kinji.workflow.site import Site, check_site, read_site

SITE = Site(
    slurm_account="lab",
    slurm_partition="cpu",
    gpu_partition="gpu",
    gpu_type="",
    gpus_per_node=4,
    setup="",
    scratch="",
    imagenet="",
)
SINFO = """#!/bin/sh
case "$*" in *%R*) printf 'cpu\\ngpu\\n' ;; *%G*) printf 'gpu:a100:4\\n' ;; esac
"""


@pytest.fixture
def sinfo(tmp_path, monkeypatch):
    (tmp_path / "sinfo").write_text(SINFO)
    (tmp_path / "sinfo").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


def test_the_profile_hands_its_knobs_on(repository):
    from snakemake.profiles import ProfileConfigFileParser

    with Path("slurm/config.yaml").open() as stream:
        given = ProfileConfigFileParser().parse(stream)
    site = read_site(Resources.parse(given["default-resources"], allow_expressions=True))
    assert site is not None and site.slurm_account == "unset" and site.slurm_partition == site.gpu_partition == "gpu"
    assert site.gpus_per_node == 8 and site.setup == ""


def test_without_the_profile_there_is_no_site():
    assert read_site(None) is None
    assert read_site(Resources.parse(["mem_mb=1000"], allow_expressions=True)) is None


def test_a_right_site_passes(sinfo):
    check_site(SITE, uses_gpus=True)
    check_site(replace(SITE, gpu_type="a100", slurm_account=""), uses_gpus=True)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"slurm_account": "unset"}, "account is 'unset': write yours"),
        ({"slurm_account": "$ACCOUNT"}, r"account is '\$ACCOUNT'"),
        ({"gpu_partition": "gpuu"}, "partition is 'gpuu', but sinfo knows cpu, gpu"),
        ({"slurm_partition": "cpuu"}, "cpu_partition is 'cpuu'"),
        ({"gpu_type": "h100"}, "gpu_model is 'h100', but partition 'gpu' has gpu:a100:4"),
        ({"scratch": "/no/such"}, "scratch is '/no/such'"),
        ({"imagenet": "/no/such"}, "imagenet is '/no/such': there is no folder train"),
    ],
)
def test_a_wrong_knob_is_named(sinfo, knobs, message):
    with pytest.raises(KinjiError, match=message):
        check_site(replace(SITE, **knobs), uses_gpus=True)


def test_off_a_cluster_it_says_where_to_go(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(KinjiError, match="login node"):
        check_site(SITE, uses_gpus=False)


def test_many_gpus_take_several_nodes():
    assert [SITE.nodes(gpus) for gpus in (0, 1, 4, 5, 16)] == [1, 1, 1, 2, 4]
    assert SITE.partition(0) == "cpu" and SITE.partition(1) == "gpu"


@pytest.mark.parametrize("setup", ["true", "export A='b c'"])
def test_the_preamble_is_shell_and_quotes_its_folders(setup, tmp_path):
    folder = tmp_path / "a 'folder'"
    lines = replace(SITE, setup=setup, scratch=str(folder)).preamble()
    shell = ["bash", "-c", f'{lines}\nprintf %s "$KINJI_CHECKPOINTS:$TMPDIR"']
    checkpoints, temporary = subprocess.run(shell, capture_output=True, text=True).stdout.split(":")
    assert temporary == str(folder) and checkpoints.startswith(f"{folder}/kinji-")


def test_two_clones_share_a_scratch_disk(tmp_path, monkeypatch):
    site = replace(SITE, scratch="/scratch")
    here = site.preamble()
    assert site.preamble() == here, "the next call finds its checkpoints"
    monkeypatch.chdir(tmp_path)
    assert site.preamble() != here


def test_a_setup_that_fails_ends_the_job():
    shell = ["bash", "-c", f"{replace(SITE, setup='false').preamble()}\necho on"]
    done = subprocess.run(shell, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""

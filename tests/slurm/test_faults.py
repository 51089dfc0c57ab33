"""What clusters do to jobs, and what is left of them afterwards."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

TOY = ("--config", "scale=smoke", "--")


@pytest.mark.slurm_ci
def test_a_cancelled_job_is_reported_and_finished_by_the_next_call(site):
    run = site.start("--retries", "0", *TOY, "toy/5_kept.txt", "toy/12_cancelled.txt")
    job, _ = site.wait_for("toy/cancelled.started")
    site.cluster.ask("scancel", job)
    output = run.communicate(timeout=300)[0]
    assert run.returncode == 1 and "Error in rule toy" in output and "CANCELLED" in output and f"{job}.log" in output
    assert Path("toy/5_kept.txt").exists() and not Path("toy/12_cancelled.txt").exists()
    site.run(*TOY, "toy/5_kept.txt", "toy/12_cancelled.txt")
    assert Path("toy/12_cancelled.txt").exists()
    assert len(Path("toy/kept.started").read_text().splitlines()) == 1, "what was finished was not run again"


def test_snakemake_killed_and_started_again_loses_no_job_and_runs_none_twice(site):
    targets = ("toy/1_short.txt", "toy/40_long.txt")
    run = site.start(*TOY, *targets)
    site.wait_for("toy/long.started")
    site.wait_for("toy/1_short.txt")
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    assert "RUNNING" in site.jobs().values(), "the jobs live on"
    _, output = site.run(*TOY, *targets, check=False)
    assert "cannot be locked" in output and "--unlock" in output
    site.run("--unlock", *TOY, *targets)
    _, output = site.run(*TOY, *targets)
    assert "Waiting for jobs of an earlier call" in output
    for name in ("short", "long"):
        assert len(Path(f"toy/{name}.started").read_text().splitlines()) == 1
    assert all(Path(target).exists() for target in targets)


@pytest.mark.slurm_ci
def test_of_two_calls_at_once_the_second_is_told_of_the_lock(site):
    first = site.start(*TOY, "toy/5_a.txt")
    site.wait_for("toy/a.started")
    status, output = site.run(*TOY, "toy/5_a.txt", check=False)
    assert status == 1 and "Directory cannot be locked" in output
    first.communicate(timeout=300)
    assert first.returncode == 0 and len(site.jobs()) == 1


def test_the_controller_restarted_in_the_middle_costs_nothing(site):
    run = site.start(*TOY, "toy/20_a.txt", "toy/1_b.txt")
    site.wait_for("toy/a.started")
    pid = site.cluster.daemon("slurmctld")
    os.kill(pid, signal.SIGTERM)
    time.sleep(8)
    start_daemon(site, "slurmctld")
    output = run.communicate(timeout=300)[0]
    assert run.returncode == 0, output
    assert len(Path("toy/a.started").read_text().splitlines()) == 1


def test_a_lost_node_costs_its_job_a_new_start_elsewhere(site):
    run = site.start(*TOY, "toy/30_a.txt")
    job, node = site.wait_for("toy/a.started")
    os.kill(site.cluster.daemon(f"slurmd.{node}"), signal.SIGKILL)
    try:
        output = run.communicate(timeout=400)[0]
        assert run.returncode == 0, output
        starts = [line.split() for line in Path("toy/a.started").read_text().splitlines()]
        assert [start[0] for start in starts] == [job, job] and starts[1][1] != node, "Slurm put the same job elsewhere"
        assert list(site.jobs()) == [job], "Snakemake did not submit it again"
    finally:
        start_daemon(site, "slurmd", "-N", node)


def start_daemon(site, name, *words):
    command = [name, "-f", str(site.cluster.folder / "slurm.conf"), *words]
    environment = site.cluster.environment | {"PATH": site.cluster.environment["PATH"] + ":/usr/sbin:/sbin"}
    subprocess.run(command, env=environment, check=True, timeout=60)


def test_training_beyond_its_time_limit_goes_on_from_its_checkpoint(site):
    _, output = site.run(*TOY, "toy/trained.txt")
    assert "TIMEOUT" in output and "TIMEOUT" in site.jobs().values()
    assert len(site.jobs()) == 2 and Path("toy/trained.txt").exists()
    epochs = [int(line) for line in Path("toy/epochs").read_text().split()]
    assert epochs == list(range(1, 13)), "no epoch was run twice"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root")
def test_a_full_disk_is_reported_and_room_mends_it(site, monkeypatch):
    Path("full").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "full"], capture_output=True).returncode:
        pytest.skip("this container mounts nothing")
    try:
        site.cluster.environment["BIG_BYTES"] = "4000000"
        status, output = site.run("--retries", "0", *TOY, "full/big", "toy/1_a.txt", check=False)
        assert status == 1 and "No space left on device" in output
        assert not Path("full/big").exists() and Path("toy/1_a.txt").exists()
        subprocess.run(["mount", "-o", "remount,size=8m", "full"], check=True)
        site.run(*TOY, "full/big")
        assert Path("full/big").stat().st_size == 4000000
    finally:
        subprocess.run(["umount", "full"], check=True)

"""What clusters do to jobs, and what is left of them afterwards."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from .conftest import set_knobs

TOY = ("--config", "scale=smoke", "--")


@pytest.mark.slurm_ci
def test_a_cancelled_job_is_reported_and_finished_by_the_next_call(site):
    targets = ("toy/kept.txt", "toy/held.txt")
    run = site.start("--retries", "0", *TOY, *targets)
    [(job, _)] = site.wait_for("toy/held.started")
    site.cluster.ask("scancel", job)
    output = run.communicate(timeout=600)[0]
    assert run.returncode == 1 and "Error in rule toy" in output and "CANCELLED" in output
    assert f"{job}.log" in output and "logs/toy/held.log" in output, "where to look"
    assert Path("toy/kept.txt").exists() and not Path("toy/held.txt").exists()
    site.release()
    site.run(*TOY, *targets)
    assert Path("toy/held.txt").exists()
    assert len(site.wait_for("toy/kept.started")) == 1, "what was finished was not run again"


def test_snakemake_killed_and_started_again_loses_no_job_and_runs_none_twice(site):
    targets = ("toy/quick.txt", "toy/held.txt")
    run = site.start(*TOY, *targets)
    site.wait_for("toy/held.started")
    site.wait_for("toy/quick.txt")
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    assert "RUNNING" in site.jobs().values(), "the jobs live on"
    _, output = site.run(*TOY, *targets, check=False)
    assert "cannot be locked" in output and "--unlock" in output
    site.run("--unlock", *TOY, *targets)
    again = site.start(*TOY, *targets)
    assert any("Waiting for jobs of an earlier call" in line for line in again.stdout)
    site.release()
    output = again.communicate(timeout=600)[0]
    assert again.returncode == 0, output
    for name in ("quick", "held"):
        assert len(site.wait_for(f"toy/{name}.started")) == 1
    assert all(Path(target).exists() for target in targets)


@pytest.mark.slurm_ci
def test_of_two_calls_at_once_the_second_is_told_of_the_lock(site):
    first = site.start(*TOY, "toy/held.txt")
    site.wait_for("toy/held.started")
    status, output = site.run(*TOY, "toy/held.txt", check=False)
    assert status == 1 and "Directory cannot be locked" in output
    site.release()
    output = first.communicate(timeout=600)[0]
    assert first.returncode == 0 and len(site.jobs()) == 1, output


def test_the_controller_restarted_in_the_middle_costs_nothing(site):
    run = site.start(*TOY, "toy/held.txt", "toy/quick.txt")
    site.wait_for("toy/held.started")
    os.kill(site.cluster.daemon("slurmctld"), signal.SIGTERM)
    time.sleep(8)  # questions in the meantime go unanswered
    start_daemon(site, "slurmctld")
    site.release()
    output = run.communicate(timeout=600)[0]
    assert run.returncode == 0, output
    assert len(site.wait_for("toy/held.started")) == 1


def test_a_lost_node_costs_its_job_a_new_start_elsewhere(site):
    run = site.start(*TOY, "toy/held.txt")
    [(job, node)] = site.wait_for("toy/held.started")
    os.kill(site.cluster.daemon(f"slurmd.{node}"), signal.SIGKILL)
    try:
        starts = site.wait_for("toy/held.started", lines=2)
        site.release()
        output = run.communicate(timeout=600)[0]
        assert run.returncode == 0, output
        assert [start[0] for start in starts] == [job, job] and starts[1][1] != node, "Slurm put the same job elsewhere"
        assert list(site.jobs()) == [job], "Snakemake did not submit it again"
    finally:
        start_daemon(site, "slurmd", "-N", node)


def start_daemon(site, name, *words):
    command = [name, "-f", str(site.cluster.folder / "slurm.conf"), *words]
    environment = site.cluster.environment | {"PATH": site.cluster.environment["PATH"] + ":/usr/sbin:/sbin"}
    subprocess.run(command, env=environment, check=True, timeout=300)


def test_training_beyond_its_time_limit_goes_on_from_its_checkpoint(site):
    _, output = site.run(*TOY, "toy/trained.txt")
    assert "TIMEOUT" in output and "TIMEOUT" in site.jobs().values()
    assert len(site.jobs()) >= 2 and Path("toy/trained.txt").exists()
    epochs = [int(line) for line in Path("toy/epochs").read_text().split()]
    assert epochs == list(range(1, 13)), "no epoch was run twice"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root")
def test_a_full_scratch_disk_is_reported_and_room_mends_it(site):
    scratch = site.folder / "scratch"
    scratch.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", scratch], capture_output=True).returncode:
        pytest.skip("this container mounts nothing")
    try:
        set_knobs(scratch=f'"{scratch}"')
        status, output = site.run("--retries", "0", *TOY, "toy/scratched.txt", "toy/kept.txt", check=False)
        assert status == 1 and "No space left on device" in output
        assert not Path("toy/scratched.txt").exists() and Path("toy/kept.txt").exists()
        subprocess.run(["mount", "-o", "remount,size=8m", scratch], check=True)
        site.run(*TOY, "toy/scratched.txt")
        assert Path("toy/scratched.txt").read_text().strip() == "4000000"
    finally:
        subprocess.run(["umount", "--lazy", scratch], check=True)

"""A real Slurm cluster for a session of tests, and a repository whose profile is set to it as a reader would do it."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
TESTBED = ROOT / "slurm" / "testbed"
KNOBS = {"account": "testbed", "partition": "main", "job_states": "squeue", "poll_seconds": 2}
TINY = {"slices": [8, 9], "moduli": [14, 15], "phi": [0.5], "repetitions": 1}
CASES = [{"n": 64, **TINY}, {"n": 65, **TINY}]


def pytest_collection_modifyitems(items):
    wanted = os.environ.get("KINJI_SLURM")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(1200))
            if not wanted:
                item.add_marker(pytest.mark.skip(reason="real Slurm jobs: `make test-slurm` runs them"))


class Cluster:
    """The testbed in a folder of its own, on ports of its own for each worker of pytest-xdist."""

    def __init__(self, folder):
        self.folder = folder
        worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
        self.environment = os.environ | {
            "TESTBED": str(folder),
            "TESTBED_PORT": str(int(os.environ.get("TESTBED_PORT", "16900")) + 10 * worker),
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]),
        }

    def testbed(self, verb):
        subprocess.run([TESTBED, verb], env=self.environment, check=True, timeout=300)

    def ask(self, *words):
        return subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=300).stdout

    def jobs(self, folder):
        """Id -> state of the jobs of a folder, finished ones too."""
        rows = [row.split("|") for row in self.ask("squeue", "-h", "-t", "all", "-o", "%i|%T|%Z").splitlines()]
        return {job: state for job, state, where in rows if where == str(folder)}

    def daemon(self, name):
        return int((self.folder / "run" / f"{name}.pid").read_text())


@pytest.fixture(scope="session")
def cluster():
    missing = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if not find(name)]
    if missing and os.environ.get("KINJI_SLURM") == "ci":
        pytest.fail(f"no {', '.join(missing)} here, and CI must not skip")
    if missing:
        pytest.skip(f"no {', '.join(missing)} here (Debian: munge slurmctld slurmd slurm-client)")
    cluster = Cluster(Path(tempfile.mkdtemp(prefix="kinji-", dir="/tmp")) / "testbed")  # a socket's path is short
    cluster.testbed("up")
    yield cluster
    cluster.testbed("down")
    cluster.folder.parent.rmdir()


def find(name):
    return shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin")


class Site:
    """A repository on a cluster."""

    def __init__(self, cluster, folder):
        self.cluster, self.folder = cluster, folder

    def start(self, *words):
        command = ["snakemake", "--profile", "slurm", *words]
        return subprocess.Popen(
            command, env=self.cluster.environment, cwd=self.folder, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def run(self, *words, check=True):
        process = self.start(*words)
        try:
            output = process.communicate(timeout=900)[0]
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        assert not check or process.returncode == 0, output
        return process.returncode, output

    def jobs(self):
        return self.cluster.jobs(self.folder)

    def wait_for(self, path, lines=1):
        """Wait until a file has so many lines, and return the words of each."""
        file, deadline = self.folder / path, time.monotonic() + 300
        while not file.exists() or file.read_text().count("\n") < lines:
            assert time.monotonic() < deadline, f"{path} did not come: {self.jobs()}"
            time.sleep(0.2)
        return [line.split() for line in file.read_text().splitlines()]

    def release(self):
        """Let the jobs called held... end."""
        (self.folder / "toy" / "released").touch()


def set_knobs(**knobs):
    """Edit the block of the profile."""
    path = Path("slurm/config.yaml")
    text = path.read_text()
    for name, value in knobs.items():
        text, found = re.subn(rf"^  {name}: \S+", f"  {name}: {value}", text, count=1, flags=re.M)
        assert found, name
    path.write_text(text)


def configure(**experiments):
    content = {"runtime_minutes": 30, "memory_megabytes": 1000, "threads": 1, "experiments": experiments}
    Path("config/smoke.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


@pytest.fixture
def site(cluster, repository):
    set_knobs(**KNOBS)
    configure(int8_dgemm=CASES)
    with Path("Snakefile").open("a") as snakefile:
        snakefile.write(f'\n\ninclude: "{Path(__file__).parent / "toy.smk"}"\n')
    site = Site(cluster, repository)
    yield site
    left = [job for job, state in site.jobs().items() if state in ("PENDING", "RUNNING")]
    if left:
        cluster.ask("scancel", *left)

"""The peer hmat-oss (Debian: libhmat-oss-dev, with libopenblas0-pthread for its BLAS), by a driver in C."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

HEADER = Path("/usr/include/hmat/hmat.h")
DRIVER = Path(__file__).with_name("driver.c")


@dataclass(frozen=True)
class Peer:
    """A compiled driver."""

    driver: Path

    @property
    def blas(self) -> str:
        """Return which BLAS the driver loads: the reference one, which Debian installs first, is slow."""
        libraries = subprocess.run(["ldd", self.driver], capture_output=True, text=True, check=True).stdout
        return "OpenBLAS" if "openblas" in libraries else "a BLAS that is not OpenBLAS"

    def measure(self, n: int, epsilon: float) -> dict[str, float]:
        """Run once, on the sphere with the natural diagonal, in this environment."""
        run = subprocess.run([self.driver, str(n), str(epsilon)], capture_output=True, text=True, check=True)
        names = ("compress", "factorize", "solve", "error", "bytes")
        return dict(zip(names, map(float, run.stdout.split()[-5:]), strict=True))


def build(folder: Path) -> Peer | str:
    """Compile the driver into ``folder``; where that is impossible, say why."""
    if not HEADER.exists():
        return "skipped: libhmat-oss-dev is not installed"
    if not shutil.which("cc"):
        return "skipped: there is no C compiler (cc)"
    driver = folder / "hmat_oss_driver"
    subprocess.run(["cc", "-O2", "-march=native", DRIVER, "-o", driver, "-lhmat", "-lm"], check=True)
    return Peer(driver)

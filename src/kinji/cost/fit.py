"""Rates of a device and of its collectives from measured steps, by least squares on the logarithms.

Six numbers are fitted. Each has a prior, log-normal about what data sheets and common experience say, wide enough (a
factor of `PRIOR_FACTOR` is one standard deviation) to give way to any data that determine it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import least_squares

from kinji.cost.counts import NetworkCounts
from kinji.cost.fabrics import Fabric
from kinji.cost.step import Plan, Rates, Step, predict

PRIORS = {
    "pass_flops": 7.5e12,  # half of V100's FP32 peak
    "product_flops": 30e12,  # a quarter of its FP16 tensor peak
    "half_size": 2000.0,
    "matrix_seconds": 1e-3,  # some tens of kernels with their synchronization
    "efficiency": 0.7,
    "latency": 50e-6,
}
PRIOR_FACTOR = 3.0
RELATIVE_ERROR = 0.05
V100_FP32_FLOPS = 15.7e12
"""Limit of inversion; NVIDIA Tesla V100 data sheet."""
V100_MEMORY_BYTES = 0.8 * 900e9
"""Four fifths of the data sheet's bandwidth; steps of one size do not tell it from the other rates."""


@dataclass(frozen=True)
class Observation:
    """Seconds of one step on some GPUs."""

    gpus: int
    plan: Plan
    seconds: float


@dataclass(frozen=True)
class Calibration:
    """What a fit found, ready to predict with.

    Attributes
    ----------
    rates
        Of one GPU.
    fabric
        As its collectives attain it.
    parameters
        The fitted numbers by name, and their relative standard deviations.
    """

    rates: Rates
    fabric: Fabric
    parameters: dict[str, tuple[float, float]]

    def predict(self, counts: NetworkCounts, plan: Plan, gpus: int) -> Step:
        """Model one step; see `kinji.cost.step.predict`."""
        return predict(counts, plan, gpus, self.fabric, self.rates)

    def on(self, fabric: Fabric) -> Calibration:
        """Return the same GPUs on another fabric, whose bandwidth is attained as well and whose latency is its own."""
        if fabric.name == self.fabric.name:
            return self
        efficiency, _ = self.parameters["efficiency"]
        return replace(self, fabric=fabric.attained(efficiency, fabric.between.latency))


def fit(
    observations: Sequence[Observation],
    counts: NetworkCounts,
    fabric: Fabric,
    relative_error: float = RELATIVE_ERROR,
) -> Calibration:
    """Fit the rates of a device and the efficiency and latency of its collectives.

    Parameters
    ----------
    observations
        Measured steps of one network; at least one.
    counts
        Of that network on one GPU.
    fabric
        Where they were measured, with the bandwidths of its data sheet.
    relative_error
        Standard deviation of a measured step about the model.

    Raises
    ------
    ValueError
        There is no observation, or one of them took no time.
    """
    if not observations or not all(0 < o.seconds < np.inf for o in observations):
        raise ValueError("a fit needs steps that took a positive, finite time")
    priors = np.log(list(PRIORS.values()))
    measured = np.log([o.seconds for o in observations])

    def misfits(logarithms: np.ndarray) -> np.ndarray:
        guess = _calibration(logarithms, np.zeros_like(logarithms), fabric)
        modelled = np.log([guess.predict(counts, o.plan, o.gpus).seconds for o in observations])
        return np.concatenate([(modelled - measured) / relative_error, (logarithms - priors) / np.log(PRIOR_FACTOR)])

    upper = np.where(np.array(list(PRIORS)) == "efficiency", 0.0, np.inf)  # no link is faster than its data sheet
    found = least_squares(misfits, priors, bounds=(-np.inf, upper), x_scale=0.1)
    jacobian: np.ndarray = np.asarray(found.jac)
    deviations = np.sqrt(np.diag(np.linalg.inv(jacobian.T @ jacobian)))
    return _calibration(found.x, deviations, fabric)


def _calibration(logarithms: np.ndarray, deviations: np.ndarray, fabric: Fabric) -> Calibration:
    values = dict(zip(PRIORS, np.exp(logarithms).tolist(), strict=True))
    parameters = {name: (values[name], float(d)) for name, d in zip(PRIORS, deviations, strict=True)}
    attained = fabric.attained(values.pop("efficiency"), values.pop("latency"))
    rates = Rates(inverse_flops=V100_FP32_FLOPS, memory_bytes=V100_MEMORY_BYTES, **values)
    return Calibration(rates, attained, parameters)

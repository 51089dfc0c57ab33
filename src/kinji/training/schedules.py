"""Learning rate and momentum as functions of the epoch (Osawa et al. 2020, "Scalable and practical natural gradient
for large-scale deep learning", sec. 6.2), with a linear warm-up, linear scaling and steps for first-order methods
(Goyal et al. 2017, "Accurate, large minibatch SGD").

The epoch is a real number: the samples seen so far over the size of the training set.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

MomentumCoupling = Literal["constant", "proportional"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Decay of the learning rate, polynomial or in steps, and the momentum that goes with it.

    Attributes
    ----------
    peak_rate : float
        Learning rate eta0 before the decay.
    peak_momentum : float
        Momentum m0 that goes with it.
    end_epoch : float
        Epoch e_end at which the polynomial reaches zero.
    start_epoch : float
        Epoch e_start at which the decay starts.
    power : float
        Exponent p_decay of the polynomial.
    warmup_epochs : float
        The rate rises linearly to `peak_rate` within these first epochs.
    warmup_rate : float
        Learning rate from which the warm-up starts.
    steps : sequence of (float, float)
        In place of the polynomial: epochs, and the factor of the peak rate from each on.
    coupling : {"constant", "proportional"}
        "constant" keeps the momentum; "proportional" keeps its ratio to the rate, m = (m0 / eta0) eta, as published
        for K-FAC. Either way it is `peak_momentum` until the decay starts.

    Raises
    ------
    ValueError
        If epochs are out of order, a rate or momentum is out of range, or the coupling is unknown.
    """

    peak_rate: float
    peak_momentum: float
    end_epoch: float
    start_epoch: float = 0.0
    power: float = 1.0
    warmup_epochs: float = 0.0
    warmup_rate: float = 0.0
    steps: tuple[tuple[float, float], ...] = ()
    coupling: MomentumCoupling = "constant"

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_epochs <= self.start_epoch < self.end_epoch:
            raise ValueError(
                "a schedule needs 0 <= warmup_epochs <= start_epoch < end_epoch, "
                f"got {self.warmup_epochs}, {self.start_epoch}, {self.end_epoch}"
            )
        if not 0 <= self.warmup_rate <= self.peak_rate or not self.peak_rate > 0 or not 0 <= self.peak_momentum < 1:
            raise ValueError(
                "a schedule needs peak_rate > 0, 0 <= warmup_rate <= peak_rate and 0 <= peak_momentum < 1, "
                f"got {self.peak_rate}, {self.warmup_rate} and {self.peak_momentum}"
            )
        if any(a >= b for (a, _), (b, _) in pairwise(self.steps)) or any(factor < 0 for _, factor in self.steps):
            raise ValueError(f"steps need growing epochs and factors >= 0, got {self.steps}")
        if self.coupling not in get_args(MomentumCoupling):
            raise ValueError(f"coupling must be one of {get_args(MomentumCoupling)}, got {self.coupling!r}")

    def decay(self, epoch: float) -> float:
        """Return the factor of the peak rate; a polynomial's is 1 until `start_epoch`, 0 from `end_epoch` on."""
        if self.steps:
            return next((factor for start, factor in reversed(self.steps) if epoch >= start), 1.0)
        progress = (epoch - self.start_epoch) / (self.end_epoch - self.start_epoch)
        return (1 - min(max(progress, 0.0), 1.0)) ** self.power

    def rate(self, epoch: float) -> float:
        """Return the learning rate eta(epoch)."""
        if epoch < self.warmup_epochs:
            return self.warmup_rate + (self.peak_rate - self.warmup_rate) * epoch / self.warmup_epochs
        return self.peak_rate * self.decay(epoch)

    def momentum(self, epoch: float) -> float:
        """Return the momentum m(epoch)."""
        return self.peak_momentum * (self.decay(epoch) if self.coupling == "proportional" else 1.0)


def linear_scaling(rate: float, batch: int, *, reference_batch: int = 256) -> float:
    """Return the learning rate of a batch of images, given that of a reference batch (Goyal et al. 2017, sec. 2.1)."""
    return rate * batch / reference_batch

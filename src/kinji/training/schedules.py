"""Learning rate and momentum as functions of the epoch (Osawa et al. 2020, "Scalable and practical natural gradient
for large-scale deep learning", sec. 6.2), with a linear warm-up for first-order methods (Goyal et al. 2017).

The epoch is a real number: the samples seen so far over the size of the training set.
"""

from dataclasses import dataclass
from typing import Literal, get_args

MomentumCoupling = Literal["constant", "proportional"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Polynomial decay of the learning rate, and the momentum that goes with it.

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
        The rate rises linearly from zero to `peak_rate` within these first epochs.
    coupling : {"constant", "proportional"}
        "constant" keeps the momentum; "proportional" keeps its ratio to the rate, m = (m0 / eta0) eta, as published
        for K-FAC. Either way it is `peak_momentum` until the decay starts.

    Raises
    ------
    ValueError
        If the epochs are out of order, a rate or momentum is out of range, or the coupling is unknown.
    """

    peak_rate: float
    peak_momentum: float
    end_epoch: float
    start_epoch: float = 0.0
    power: float = 1.0
    warmup_epochs: float = 0.0
    coupling: MomentumCoupling = "constant"

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_epochs <= self.start_epoch < self.end_epoch:
            raise ValueError(
                "a schedule needs 0 <= warmup_epochs <= start_epoch < end_epoch, "
                f"got {self.warmup_epochs}, {self.start_epoch}, {self.end_epoch}"
            )
        if not self.peak_rate > 0 or not 0 <= self.peak_momentum < 1:
            raise ValueError(
                "a schedule needs peak_rate > 0 and 0 <= peak_momentum < 1, "
                f"got {self.peak_rate} and {self.peak_momentum}"
            )
        if self.coupling not in get_args(MomentumCoupling):
            raise ValueError(f"coupling must be one of {get_args(MomentumCoupling)}, got {self.coupling!r}")

    def decay(self, epoch: float) -> float:
        """Return the factor of the polynomial decay: 1 until `start_epoch`, 0 from `end_epoch` on."""
        progress = (epoch - self.start_epoch) / (self.end_epoch - self.start_epoch)
        return (1 - min(max(progress, 0.0), 1.0)) ** self.power

    def rate(self, epoch: float) -> float:
        """Return the learning rate eta(epoch)."""
        if epoch < self.warmup_epochs:
            return self.peak_rate * epoch / self.warmup_epochs
        return self.peak_rate * self.decay(epoch)

    def momentum(self, epoch: float) -> float:
        """Return the momentum m(epoch)."""
        return self.peak_momentum * (self.decay(epoch) if self.coupling == "proportional" else 1.0)

"""Kronecker-factored natural gradient descent, distributed by layer ownership.

Files in the order the data flows: `statistics` (one batch's factors) -> `inverse` (damping) -> `blocks` (what
belongs together) -> `ownership` (who inverts what) -> `packing`, `communicator` (how it travels) ->
`optimizer` (the stages of a step).
"""

from kinji.kfac.communicator import Communicator, MPICommunicator, SerialCommunicator, TorchCommunicator
from kinji.kfac.optimizer import KFAC

__all__ = ["KFAC", "Communicator", "MPICommunicator", "SerialCommunicator", "TorchCommunicator"]

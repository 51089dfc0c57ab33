"""Kronecker-factored natural gradient descent, distributed by layer ownership.

Files in the order the data flows: `threads`, `triangle`, `lapack`, `products` (fast ones) -> `fisher` (whose
gradients) -> `recorder` (hooks) -> `statistics` (one batch's factors) -> `blocked_cholesky`, `cholesky`, `inverse`
(damping) -> `columns` (the cheaper order) -> `block`, `kronecker`, `normalization`, `blocks` (what belongs together) ->
`ownership` (who inverts what) -> `packing`, `communicator` (how it travels) -> `overlap`, `gathering` (one step's
statistics) -> `staleness` (when) -> `state`, `curvature` (averages and inverses) -> `faults`, `update`, `options` ->
`optimizer` (the stages of a step).
"""

from kinji.kfac.communicator import Communicator, MPICommunicator, SerialCommunicator, TorchCommunicator
from kinji.kfac.optimizer import KFAC

__all__ = ["KFAC", "Communicator", "MPICommunicator", "SerialCommunicator", "TorchCommunicator"]

"""Seconds of one training step at sizes nobody here owns: counted operations and bytes over fitted rates.

Files in the order the data flows: `networks` (built without memory) -> `counts` (operations and bytes of each layer) ->
`collectives`, `fabrics` (what travelling costs) -> `step` (the seven parts of a step) -> `fit` (rates from measured
steps) -> `validation` (fit on few GPUs, judge on many), `trust` (where to believe it); `transfer` carries a measured
step over to other ranks or another network.
"""

from kinji.cost.counts import NetworkCounts, count
from kinji.cost.fabrics import Fabric, find_fabric
from kinji.cost.fit import Calibration, fit
from kinji.cost.step import Plan, Rates, Step, predict

__all__ = [
    "Calibration",
    "Fabric",
    "NetworkCounts",
    "Plan",
    "Rates",
    "Step",
    "count",
    "find_fabric",
    "fit",
    "predict",
]

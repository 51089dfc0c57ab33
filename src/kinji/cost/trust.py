"""Where the model of a step has been checked, and what it has not."""

from __future__ import annotations

from kinji.cost.counts import NetworkCounts
from kinji.cost.fabrics import Fabric

CHECKED_GPUS = 1024
CHECKED_BATCH = 32
CHECKED_SIZE = 224

RANGE = (
    f"checked on published steps of ResNet-50 on ABCI (V100), {CHECKED_BATCH} images of {CHECKED_SIZE} pixels a GPU, "
    f"1 to {CHECKED_GPUS:,} GPUs; fitted on up to 32 of them, for that machine and code"
)


def doubts(counts: NetworkCounts, gpus: int, fabric: Fabric) -> list[str]:
    """Return what of a plan lies outside the range in which the model was checked; nothing if all is inside."""
    checked = {
        f"the network {counts.network} (checked: resnet50)": counts.network == "resnet50",
        f"{counts.batch} examples a GPU (checked: {CHECKED_BATCH})": counts.batch == CHECKED_BATCH,
        f"examples of size {counts.size} (checked: {CHECKED_SIZE})": counts.size == CHECKED_SIZE,
        f"{gpus:,} GPUs (checked: 1 to {CHECKED_GPUS:,})": gpus <= CHECKED_GPUS,
        f"the fabric {fabric.name} (checked: abci)": fabric.name == "abci",
    }
    return [doubt for doubt, inside in checked.items() if not inside]

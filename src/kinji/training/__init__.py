"""Training runs that compare optimizers: data, model, schedule, optimizer, and one loop for all of them.

Nothing here knows a plot or the workflow: a run takes images and hands out readings. The loop's files in the order the
data flows: `plan` (which images) -> `step` (one of the optimizer) -> `loop` -> `state`, `checkpoint` (to go on later);
`ranks` and `batch_norm` for those that share a run.
"""

from kinji.training.checkpoint import CheckpointError, Checkpoints, Interrupted
from kinji.training.data import FOLDS, Fold, Images, digits_fold
from kinji.training.loop import evaluate, train
from kinji.training.models import ResidualNetwork, scale_batch_norm_momentum
from kinji.training.optimizers import OPTIMIZERS, build_optimizer
from kinji.training.schedules import MomentumCoupling, Schedule
from kinji.training.source import Augmentation, ImageSource
from kinji.training.state import Reading

__all__ = [
    "FOLDS",
    "OPTIMIZERS",
    "Augmentation",
    "CheckpointError",
    "Checkpoints",
    "Fold",
    "ImageSource",
    "Images",
    "Interrupted",
    "MomentumCoupling",
    "Reading",
    "ResidualNetwork",
    "Schedule",
    "build_optimizer",
    "digits_fold",
    "evaluate",
    "scale_batch_norm_momentum",
    "train",
]

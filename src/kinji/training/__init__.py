"""Training runs that compare optimizers: data, model, schedule, optimizer, and one loop for all of them.

Nothing here knows a file, a plot or the workflow: a run takes tensors and hands out readings.
"""

from kinji.training.data import FOLDS, Fold, Images, digits_fold
from kinji.training.loop import Reading, evaluate, train
from kinji.training.models import ResidualNetwork, scale_batch_norm_momentum
from kinji.training.optimizers import OPTIMIZERS, build_optimizer
from kinji.training.schedules import MomentumCoupling, Schedule
from kinji.training.source import Augmentation, ImageSource

__all__ = [
    "FOLDS",
    "OPTIMIZERS",
    "Augmentation",
    "Fold",
    "ImageSource",
    "Images",
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

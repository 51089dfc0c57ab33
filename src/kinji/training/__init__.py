"""Training runs that compare optimizers: data, models, schedules, optimizers, and one loop for all of them.

The files read in the order the data flows. Nothing here knows a file, a plot or the workflow; a run goes in as
arguments and comes out as the numbers of its epochs.
"""

from kinji.training.data import DIGITS, FOLDS, Fold, Images, digits_fold
from kinji.training.loop import Epoch, Run, train
from kinji.training.models import ResidualNetwork, scale_batch_norm_momentum
from kinji.training.optimizers import OPTIMIZERS, build_optimizer
from kinji.training.schedules import MomentumCoupling, Schedule

__all__ = [
    "DIGITS",
    "FOLDS",
    "OPTIMIZERS",
    "Epoch",
    "Fold",
    "Images",
    "MomentumCoupling",
    "ResidualNetwork",
    "Run",
    "Schedule",
    "build_optimizer",
    "digits_fold",
    "scale_batch_norm_momentum",
    "train",
]

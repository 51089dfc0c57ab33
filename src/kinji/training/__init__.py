"""Training runs that compare optimizers: data, model, schedule, optimizer, and one loop for all of them.

Files in the order the data flows: `source` (what the loop asks of images) -> `data` (digits), `counted_random` ->
`stored` -> `procedural` (images made here), `imagenet` (folders of images) -> `augmentation` (of whole batches) ->
`models`, `schedules`, `optimizers`, `presets` (published recipes); then those of the loop: `plan` (which images) ->
`step` (one of the optimizer) -> `loop` -> `state`, `checkpoint` (to go on later); `ranks` and `batch_norm` for those
that share a run. Nothing here knows a plot or the workflow.
"""

from kinji.training.augmentation import BatchAugmentation
from kinji.training.batch_norm import synchronize_batch_norm
from kinji.training.checkpoint import CheckpointError, Checkpoints, Interrupted
from kinji.training.data import FOLDS, Fold, Images, digits_fold
from kinji.training.imagenet import FolderImages
from kinji.training.loop import evaluate, train
from kinji.training.models import MODELS, ResidualNetwork, build_model, scale_batch_norm_momentum
from kinji.training.optimizers import OPTIMIZERS, build_optimizer
from kinji.training.presets import PRESETS, Preset
from kinji.training.procedural import procedural_images
from kinji.training.schedules import MomentumCoupling, Schedule, linear_scaling
from kinji.training.source import Augmentation, ImageSource
from kinji.training.state import Reading, Step
from kinji.training.stored import StoredImages

__all__ = [
    "FOLDS",
    "MODELS",
    "OPTIMIZERS",
    "PRESETS",
    "Augmentation",
    "BatchAugmentation",
    "CheckpointError",
    "Checkpoints",
    "Fold",
    "FolderImages",
    "ImageSource",
    "Images",
    "Interrupted",
    "MomentumCoupling",
    "Preset",
    "Reading",
    "ResidualNetwork",
    "Schedule",
    "Step",
    "StoredImages",
    "build_model",
    "build_optimizer",
    "digits_fold",
    "evaluate",
    "linear_scaling",
    "procedural_images",
    "scale_batch_norm_momentum",
    "synchronize_batch_norm",
    "train",
]

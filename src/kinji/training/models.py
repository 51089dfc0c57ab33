"""A residual network for images of 8 x 8 pixels: basic blocks with batch normalization (He et al. 2016, sec. 4.2).

Dimension letters: N images, C channels, H height, W width, K classes.
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn.functional import relu


def convolution(channels_in: int, channels_out: int, *, size: int = 3, stride: int = 1) -> nn.Sequential:
    """Return a convolution without bias that keeps the height and width (over the stride), then its BatchNorm."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, size, stride, padding=size // 2, bias=False),
        nn.BatchNorm2d(channels_out),
    )


class BasicBlock(nn.Module):
    """Two convolutions beside a shortcut, which is a convolution too where the shape changes."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.first = convolution(channels_in, channels_out, stride=stride)
        self.second = convolution(channels_out, channels_out)
        same_shape = channels_in == channels_out and stride == 1
        self.shortcut = nn.Identity() if same_shape else convolution(channels_in, channels_out, size=1, stride=stride)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return the block's output; each stride divides H and W."""
        return relu(self.second(relu(self.first(x_NCHW))) + self.shortcut(x_NCHW))


class ResidualNetwork(nn.Module):
    """One basic block a width, halving the resolution between them, then an average and a linear layer.

    Parameters
    ----------
    widths : sequence of int
        Channels of each block.
    classes : int
        Number of classes K.
    channels : int
        Channels of the images.

    Raises
    ------
    ValueError
        If there is no block.
    """

    def __init__(self, widths: Sequence[int] = (8, 16, 32), *, classes: int = 10, channels: int = 1) -> None:
        super().__init__()
        if not widths:
            raise ValueError("a residual network needs the width of at least one block, got none")
        self.stem = convolution(channels, widths[0])
        self.blocks = nn.Sequential(
            BasicBlock(widths[0], widths[0], stride=1),
            *(BasicBlock(a, b, stride=2) for a, b in pairwise(widths)),
        )
        self.classifier = nn.Linear(widths[-1], classes)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return the logits_NK."""
        return self.classifier(self.blocks(relu(self.stem(x_NCHW))).mean(dim=(2, 3)))


def scale_batch_norm_momentum(model: nn.Module, batch_size: int, *, reference_batch_size: int = 64) -> None:
    """Let the running statistics of every BatchNorm average over the same number of images at any batch size.

    An average kept with weight rho at the reference batch takes rho^(batch / reference) (Busbridge et al. 2023,
    "How to scale your EMA", definition 1.2). Without it, a run of few large steps is tested with stale statistics.

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place; each BatchNorm has the momentum that is meant for the reference batch size.
    batch_size, reference_batch_size : int
        Images in a step.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.momentum is not None:
            module.momentum = 1 - (1 - module.momentum) ** (batch_size / reference_batch_size)

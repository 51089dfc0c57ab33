"""Residual networks by name: small ones of basic blocks (He et al. 2016, sec. 4.2), and torchvision's for ImageNet.

Dimension letters: N images, C channels, H height, W width, K classes.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import relu
from torchvision.models import resnet18, resnet50


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
    """Basic blocks, the resolution halved wherever the width changes, then an average and a linear layer.

    Parameters
    ----------
    widths : sequence of int
        Channels of each stage.
    blocks : int
        Basic blocks of a stage.
    classes : int
        Number of classes K.
    channels : int
        Channels of the images.

    Raises
    ------
    ValueError
        If there is no block.
    """

    def __init__(
        self, widths: Sequence[int] = (8, 16, 32), *, blocks: int = 1, classes: int = 10, channels: int = 1
    ) -> None:
        super().__init__()
        if not widths or blocks < 1:
            raise ValueError(f"a residual network needs the width of at least one block, got {widths} times {blocks}")
        self.stem = convolution(channels, widths[0])
        through = [widths[0], *(width for width in widths for _ in range(blocks))]
        self.blocks = nn.Sequential(*(BasicBlock(a, b, stride=1 if a == b else 2) for a, b in pairwise(through)))
        self.classifier = nn.Linear(widths[-1], classes)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return the logits_NK."""
        return self.classifier(self.blocks(relu(self.stem(x_NCHW))).mean(dim=(2, 3)))


MODELS: dict[str, Callable[..., nn.Module]] = {
    "small": ResidualNetwork,  # 3 blocks, for 8 x 8 pixels
    "resnet20": partial(ResidualNetwork, (16, 32, 64), blocks=3),  # that of He et al. for 32 x 32 pixels
    "resnet18": lambda *, classes, channels: torchvision_model(resnet18, classes, channels),
    "resnet50": lambda *, classes, channels: torchvision_model(resnet50, classes, channels),
}


def build_model(name: str, *, classes: int, channels: int = 3, channels_last: bool = False) -> nn.Module:
    """Return a network by its name, with weights from torch's global generator.

    Parameters
    ----------
    name : str
        A key of `MODELS`; ``resnet18`` and ``resnet50`` are torchvision's, for images of 64 pixels and more.
    classes, channels : int
        Of the images.
    channels_last : bool
        Whether convolutions keep their channels in the last dimension of memory, as half-precision units like it.

    Raises
    ------
    ValueError
        If there is no network of that name.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; known: {', '.join(MODELS)}")
    model = MODELS[name](classes=classes, channels=channels)
    return model.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def torchvision_model(build: Callable[..., nn.Module], classes: int, channels: int) -> nn.Module:
    """Return one of torchvision's networks, untrained, whose first convolution takes other than RGB images too."""
    model = build(num_classes=classes)
    if channels != 3:
        model.conv1 = nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
    return model


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

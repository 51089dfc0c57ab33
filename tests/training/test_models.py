import pytest
import torch
from torch import nn

from kinji.training import ResidualNetwork, build_model, scale_batch_norm_momentum


def test_each_width_after_the_first_halves_the_resolution() -> None:
    model = ResidualNetwork((4, 8, 16), classes=7, channels=3)
    shapes = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
    logits_NK = model(torch.randn(5, 3, 8, 8))
    assert logits_NK.shape == (5, 7)
    assert shapes == [(5, 4, 8, 8), (5, 8, 4, 4), (5, 16, 2, 2)]


def test_a_block_with_zero_convolutions_is_its_shortcut() -> None:
    model = ResidualNetwork((4,)).eval()
    block = model.blocks[0]
    nn.init.zeros_(block.second[0].weight)
    x_NCHW = torch.rand(2, 4, 8, 8)
    torch.testing.assert_close(block(x_NCHW), x_NCHW)


def test_in_evaluation_an_image_does_not_see_its_batch() -> None:
    torch.manual_seed(0)
    model = ResidualNetwork()
    model(torch.randn(64, 1, 8, 8))
    model.eval()
    images_NCHW, order_N = torch.randn(50, 1, 8, 8), torch.randperm(50)
    torch.testing.assert_close(model(images_NCHW)[order_N], model(images_NCHW[order_N]))
    torch.testing.assert_close(model(images_NCHW)[:1], model(images_NCHW[:1]))


@pytest.mark.parametrize(("batch_size", "images"), [(16, 512), (64, 512), (512, 512)])
def test_scaled_running_statistics_forget_at_the_same_rate_per_image(batch_size: int, images: int) -> None:
    model = ResidualNetwork((4,))
    scale_batch_norm_momentum(model, batch_size)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 3
    for norm in norms:
        assert norm.momentum is not None
        assert (1 - norm.momentum) ** (images / batch_size) == pytest.approx(0.9 ** (images / 64))


def test_a_network_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one block"):
        ResidualNetwork(())


def test_resnet20_is_that_of_the_paper() -> None:
    model = build_model("resnet20", classes=10)
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and m.weight.shape[-1] != 1]
    assert len(layers) == 20  # the two 1 x 1 convolutions of shortcuts aside
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(("name", "parameters"), [("resnet18", 11_689_512), ("resnet50", 25_557_032)])
def test_torchvision_networks_have_their_size(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = build_model(name, classes=1000)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("name", ["small", "resnet18"])
def test_channels_last_changes_the_layout_and_nothing_else(name: str) -> None:
    torch.manual_seed(0)
    plain = build_model(name, classes=3, channels=1).double().eval()
    last = build_model(name, classes=3, channels=1, channels_last=True).double().eval()
    last.load_state_dict(plain.state_dict())
    convolution = next(m for m in last.modules() if isinstance(m, nn.Conv2d) and m.weight.shape[1] > 1)
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
    x_NCHW = torch.randn(2, 1, 16, 16).double()
    torch.testing.assert_close(plain(x_NCHW), last(x_NCHW))


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown model 'resnet-50'; known: small"):
        build_model("resnet-50", classes=10)

"""The order of products that goes by columns: the same step, and only where they make up the gradient."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from kinji.kfac import KFAC
from kinji.kfac.columns import are_few, make_up

WIDE = {"linear": lambda: nn.Linear(70, 50), "convolution": lambda: nn.Conv2d(16, 24, 3, stride=2, bias=False)}


def networks(build, dtype=torch.float64):
    torch.manual_seed(0)
    layer = build()
    shape = (5, 70) if isinstance(layer, nn.Linear) else (5, 16, 5, 5)
    torch.manual_seed(1)
    return nn.Sequential(layer, nn.Flatten()).to(dtype), torch.randn(shape, dtype=dtype)


def stepped(build, change=lambda model: None, penalty=0.0, by_columns=True):
    model, x = networks(build)
    optimizer = KFAC(model, lr=0.1, columns=by_columns)
    (block,) = optimizer.blocks
    loss = functional.cross_entropy(model(x), torch.arange(5))
    (loss + penalty * model[0].weight.square().sum()).backward()
    assert (block in optimizer._gathering.columns) == by_columns
    change(model)
    optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


def clip(model: nn.Module) -> None:
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)


@pytest.mark.parametrize("build", WIDE.values(), ids=WIDE)
@pytest.mark.parametrize("options", [{}, {"change": clip}, {"penalty": 1e-6}], ids=["plain", "clipped", "penalized"])
def test_both_orders_take_the_same_step(build, options):
    ours, reference = stepped(build, **options), stepped(build, **options, by_columns=False)
    torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("build", WIDE.values(), ids=WIDE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_that_autograd_forms_is_recognized(build, dtype):
    model, x = networks(build, dtype)
    optimizer = KFAC(model, lr=0.1)
    (block,) = optimizer.blocks
    functional.cross_entropy(model(x), torch.arange(5)).backward()
    columns = optimizer._gathering.columns[block]
    joined = torch.cat([p.grad.reshape(len(p), -1) for p in model.parameters()], dim=1)
    assert make_up(joined, columns)
    assert not make_up(joined * (1 + 1e-3), columns)
    assert not make_up(torch.full_like(joined, torch.nan), columns)
    optimizer.step()
    assert not optimizer._gathering.columns


def test_the_order_with_fewer_operations_is_chosen():
    assert are_few(128, 4608, 512) and are_few(32, 2049, 1000)
    assert not are_few(512, 2304, 256) and not are_few(1, 1, 1)

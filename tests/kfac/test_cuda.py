"""On a GPU: what a CPU computes in double precision, in every precision, beside the backward pass or not."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from kinji.kfac import KFAC, TorchCommunicator
from kinji.kfac.cholesky import mend, prepare, solve
from kinji.kfac.overlap import SideStream
from kinji.kfac.products import add_gram

from .triangles import lower_alone, whole

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture(autouse=True)
def convolutions_in_full_precision():
    """Unless told otherwise cuDNN takes TF32, by which a first step differs in the second digit; that is not ours."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def network() -> nn.Sequential:
    """Every kind of layer but embeddings, wide enough for each path of products and inverses."""
    torch.manual_seed(7)
    stem = [nn.Conv2d(3, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(inplace=True)]
    trunk = [nn.Conv2d(64, 64, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(64, affine=True), nn.ReLU()]
    narrow = [nn.Conv2d(64, 24, 1, groups=4), nn.Flatten(), nn.Linear(24 * 16, 40), nn.LayerNorm(40), nn.Tanh()]
    return nn.Sequential(*stem, *trunk, *narrow, nn.Linear(40, 5))


def batch(seed: int, size: int = 24) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 3, 8, 8, generator=generator), torch.arange(size) % 5


def train(
    device: str,
    dtype: torch.dtype,
    steps: int = 4,
    memory: torch.memory_format = torch.contiguous_format,
    **options: Any,
) -> list[Tensor]:
    model = network().to(device, dtype).to(memory_format=memory)
    optimizer = KFAC(model, lr=0.05, damping=1e-2, weight_decay=1e-3, **options)
    for seed in range(steps):
        x, target = batch(seed)
        optimizer.zero_grad()
        output = model(x.to(device, dtype).to(memory_format=memory))
        optimizer.form_statistics(output)
        functional.cross_entropy(output, target.to(device)).backward()
        optimizer.step()
    return [parameter.detach().cpu().double() for parameter in model.parameters()]


def moved(weights: list[Tensor]) -> list[Tensor]:
    return [weight - start.detach().double() for weight, start in zip(weights, network().parameters(), strict=True)]


def largest_difference(ours: list[Tensor], reference: list[Tensor]) -> float:
    """Of the way that any parameter has gone."""
    pairs = zip(moved(ours), moved(reference), strict=True)
    return max(((one - other).norm() / other.norm()).item() for one, other in pairs)


OPTIONS: dict[str, dict[str, Any]] = {
    "every step": {},
    "intervals": {"statistics_interval": 2, "inverse_interval": 2, "momentum_rule": "released"},
    "adaptive": {"statistics_interval": "adaptive", "similarity": 0.8, "statistics_decay": 0.0},
    "eigen": {"inverse": "eigen", "normalization": "full"},
    "rescaled": {"rescale_weights": "published", "normalization": "diagonal"},
    "exact": {"fisher": "exact"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(("dtype", "steps", "bound"), [(torch.float64, 4, 1e-8), (torch.float32, 1, 1e-3)])
def test_a_gpu_trains_as_a_cpu_does_in_double_precision(options, dtype, steps, bound):
    reference = train("cpu", torch.float64, steps, **options)
    assert largest_difference(train("cuda", dtype, steps, **options), reference) < bound


BLOCKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(600, 40), (50, 600)),
    "convolution": (lambda: nn.Conv2d(64, 32, 3, padding=1), (20, 64, 6, 6)),
    "depthwise": (lambda: nn.Conv2d(32, 32, 3, groups=32), (20, 32, 6, 6)),
    "batch normalization": (lambda: nn.BatchNorm2d(16), (20, 16, 6, 6)),
    "layer normalization": (lambda: nn.LayerNorm(48), (20, 9, 48)),
    "embedding": (lambda: nn.Embedding(30, 16, padding_idx=3), (20, 9)),
}


@pytest.mark.parametrize(("build", "shape"), BLOCKS.values(), ids=BLOCKS)
def test_preconditioned_gradients_are_those_of_a_cpu_in_double_precision(build, shape):
    directions = []
    for device, dtype in (("cpu", torch.float64), ("cuda", torch.float32)):
        torch.manual_seed(1)
        layer, x = build(), torch.randn(shape)
        x = torch.randint(0, 30, shape) if isinstance(layer, nn.Embedding) else x.to(dtype)
        optimizer = KFAC(layer.to(device, dtype), lr=1.0, momentum=0.0, damping=1e-2)
        before = [parameter.detach().clone() for parameter in layer.parameters()]
        layer(x.to(device)).flatten(1).sin().logsumexp(1).mean().backward()
        optimizer.step()
        directions.append([(b - p.detach()).cpu().double() for b, p in zip(before, layer.parameters(), strict=True)])
    for reference, ours in zip(*directions, strict=True):
        assert (ours - reference).norm() < 1e-3 * reference.norm()


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("passes", [1, 3])
def test_statistics_beside_the_backward_pass_are_those_formed_within_it(memory, passes):
    """Residual connections share gradients, into which autograd adds in place as soon as it may."""

    class Residual(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            for layer in self:
                x = x + layer(x)
            return x

    statistics = []
    for overlap in (True, False, True):
        torch.manual_seed(2)
        trunk = Residual(*(nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64)) for _ in range(12)))
        model = (
            nn.Sequential(trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
            .cuda()
            .to(memory_format=memory)
        )
        optimizer = KFAC(model, lr=0.0, overlap=overlap, accumulation_steps=passes, statistics_decay=0.0)
        for _ in range(3):
            optimizer.zero_grad()
            for _ in range(passes):
                x = torch.randn(16, 64, 16, 16).cuda().to(memory_format=memory)
                (functional.cross_entropy(model(x), torch.arange(16).cuda() % 10) / passes).backward()
            optimizer.step()
        states = optimizer.curvature.states.values()
        pairs = [pair for state in states for pair in zip(state.statistics, state.symmetric, strict=True)]
        statistics.append([whole(tensor.cpu()) if symmetric else tensor.cpu() for tensor, symmetric in pairs])
    for beside, within, again in zip(*statistics, strict=True):
        assert (beside - within).norm() <= 1e-5 * within.norm()
        assert (again - within).norm() <= 1e-5 * within.norm()


def test_a_side_stream_waits_and_is_waited_for():
    side, x = SideStream(torch.device("cuda")), torch.zeros(1 << 20, device="cuda")
    for _ in range(100):
        x += 1
        with side.beside(x):
            y = x * 2
        side.join()
        assert (y - 2 * x).abs().max() == 0


def test_nothing_makes_the_host_wait_while_a_step_is_differentiated():
    model = network().cuda()
    optimizer = KFAC(model, lr=0.05)
    x, target = (tensor.cuda() for tensor in batch(0))
    for _ in range(2):
        optimizer.zero_grad()
        torch.cuda.set_sync_debug_mode("error")
        try:
            functional.cross_entropy(model(x), target).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("statistics_dtype", [None, torch.bfloat16])
def test_autocast_with_a_scaler_stays_close_to_full_precision(dtype, statistics_dtype):
    losses = []
    for enabled in (False, True):
        model = network().cuda().to(memory_format=torch.channels_last)
        scaler = torch.amp.GradScaler("cuda", init_scale=2.0**12, enabled=enabled and dtype == torch.float16)
        chosen = {"grad_scaler": scaler, "statistics_dtype": statistics_dtype} if enabled else {}
        optimizer = KFAC(model, lr=0.02, damping=1e-2, **chosen)
        for seed in range(10):
            x, target = batch(seed % 2)
            optimizer.zero_grad()
            with torch.autocast("cuda", dtype, enabled=enabled):
                output = model(x.cuda().to(memory_format=torch.channels_last))
                loss = functional.cross_entropy(output, target.cuda())
            scaler.scale(loss).backward() if enabled else loss.backward()
            scaler.step(optimizer) if enabled else optimizer.step()
            if enabled:
                scaler.update()
        losses.append(loss.item())
        states = optimizer.curvature.states.values()
        assert all(tensor.dtype == torch.float32 for state in states for tensor in state.statistics)
    assert losses[1] == pytest.approx(losses[0], rel=0.1, abs=0.05) and losses[0] < 1.5


def test_a_step_with_overflow_is_left_out():
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**10)
    model = network().cuda()
    optimizer = KFAC(model, lr=0.05, grad_scaler=scaler)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    scaler.scale(functional.cross_entropy(model(batch(0)[0].cuda()), batch(0)[1].cuda())).backward()
    model[0].weight.grad[0] = torch.inf
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**9 and optimizer.steps == 0
    assert all(map(torch.equal, before, model.parameters()))


def test_channels_last_changes_nothing():
    reference = train("cpu", torch.float64, steps=3)
    ours = train("cuda", torch.float64, 3, torch.channels_last)
    assert largest_difference(ours, reference) < 1e-8


@pytest.fixture(params=["legacy", "new"])
def tf32(request):
    """TF32 by either of torch's switches."""
    products = torch.backends.cuda.matmul
    before = products.fp32_precision
    if request.param == "legacy":
        products.allow_tf32 = True
    else:
        products.fp32_precision = "tf32"
    yield
    if request.param == "legacy":
        products.allow_tf32 = False
    products.fp32_precision = before


def test_inverses_and_directions_do_not_take_tf32(tf32):
    torch.manual_seed(0)
    model = nn.Linear(700, 300).cuda()
    optimizer = KFAC(model, lr=1.0, momentum=0.0, damping=1e-4)
    x, target = torch.randn(64, 700, device="cuda") * torch.logspace(0, -3, 700, device="cuda"), torch.arange(64).cuda()
    functional.cross_entropy(model(x), target).backward()
    gradient = torch.cat([model.weight.grad, model.bias.grad[:, None]], dim=1).double()
    optimizer.step()
    (block,) = optimizer.curvature.states
    state = optimizer.curvature.states[block]
    a, g = (whole(statistic.double()) for statistic in state.statistics)
    pi = ((a.trace() / len(a)) / (g.trace() / len(g))).sqrt()
    damped_a, damped_g = a + 1e-2 * pi * torch.eye(len(a)).cuda(), g + 1e-2 / pi * torch.eye(len(g)).cuda()
    reference = torch.linalg.solve(damped_g.double(), torch.linalg.solve(damped_a.double(), gradient.T).T)
    (ours,) = [optimizer.state[model.weight]["velocity"]]
    assert (ours.double() + reference[:, :-1]).norm() < 1e-4 * reference.norm()
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(130, 200), (6, 20, 70)])
def test_operands_in_half_precision_are_summed_in_full(dtype, shape):
    x = torch.randn(*shape, device="cuda")
    sums = torch.full((*shape[:-1], shape[-2]), torch.nan, device="cuda")
    rounded = x.to(dtype).double()
    add_gram(x.to(dtype), sums, scale=0.5, fresh=True)
    add_gram(x.to(dtype), sums, scale=1.5, fresh=False)
    assert (sums - 2 * rounded @ rounded.mT).norm() < 1e-5 * sums.norm()


@pytest.mark.parametrize("n", [5, 700])
def test_factors_are_mended_as_on_a_cpu(n):
    ones, tiny = torch.ones(n, n, device="cuda"), torch.tensor(1e-8, device="cuda")
    out, kept = torch.empty_like(ones), lower_alone(ones)
    assert not prepare(kept, tiny, out)
    mend(kept, tiny, "", out)
    reference = torch.linalg.inv(ones.double() + 1e-8 * torch.eye(n, device="cuda"))
    assert (solve(out, torch.eye(n, device="cuda")) - reference).norm() < 1e-2 * reference.norm()
    with pytest.raises(torch.linalg.LinAlgError, match="fc: factor A is not finite"):
        mend(torch.full_like(ones, torch.nan), tiny, "fc: factor A", out)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_resumes_from_a_file(options, tmp_path):
    def steps(model: nn.Module, optimizer: KFAC, seeds: range) -> list[Tensor]:
        for seed in seeds:
            x, target = (tensor.cuda() for tensor in batch(seed))
            optimizer.zero_grad()
            output = model(x)
            optimizer.form_statistics(output)
            functional.cross_entropy(output, target).backward()
            optimizer.step()
        return [parameter.detach().clone() for parameter in model.parameters()]

    model = network().cuda()
    optimizer = KFAC(model, lr=0.05, **options)
    steps(model, optimizer, range(3))
    torch.save((copy.deepcopy(model.state_dict()), optimizer.state_dict()), tmp_path / "checkpoint")
    uninterrupted = steps(model, optimizer, range(3, 6))
    resumed = network().cuda()
    other = KFAC(resumed, lr=1.0, **options)
    saved = torch.load(tmp_path / "checkpoint", map_location="cpu")
    resumed.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    torch.testing.assert_close(uninterrupted, steps(resumed, other, range(3, 6)), rtol=1e-4, atol=1e-6)


def test_nccl_with_one_process(tmp_path):
    if not torch.distributed.is_nccl_available():
        pytest.skip("this torch has no NCCL")
    torch.distributed.init_process_group("nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        ours = train("cuda", torch.float64, communicator=TorchCommunicator())
    finally:
        torch.distributed.destroy_process_group()
    assert largest_difference(ours, train("cpu", torch.float64)) < 1e-8

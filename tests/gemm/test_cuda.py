"""The GPU's kernels against the CPU's, to the bit: compiled for the host under a stand-in for CuPy, and on a GPU."""

import importlib.util
import re
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kinji.gemm import cpu, cuda, matmul, ozaki_two, scheme_one, scheme_two
from kinji.gemm.moduli import MODULI, moduli
from kinji.gemm.ozaki_two import shifts
from tests.gemm.fake_cupy import COMPILER, KERNEL, FakeCupy
from tests.gemm.strategies import exponential, numbers

LARGEST = sys.float_info.max
LONG_ROW = 150  # more than twice the threads of a block
hostile = st.one_of(numbers, st.sampled_from([np.nan, np.inf, -np.inf, 5e-324, -5e-324, LARGEST, -LARGEST]))
counts, seeds = st.integers(1, len(MODULI)), st.integers(0)
few = settings(max_examples=50)


class Host:
    """`kinji.gemm.cuda` on the CPU, with small blocks: all their threads take turns on one."""

    def __init__(self, folder, patch):
        spec = importlib.util.spec_from_file_location("kinji.gemm.cuda_on_host", cuda.__file__)
        self.kernels = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.kernels)
        self.kernels.DEVICE = torch.device("cpu")
        self.kernels.THREADS = self.kernels.ROW_THREADS = 64
        cupy = FakeCupy(folder)
        patch.setattr(torch.cuda, "current_stream", lambda device: cupy.stream)
        patch.setattr(self.kernels, "_cupy", lambda: cupy)

    def there(self, *tensors):
        return tensors

    def run(self, function, *tensors, **options):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "kinji.gemm.cpu", self.kernels)
            return function(*tensors, **options)


class Gpu:
    kernels = cuda

    def there(self, *tensors):
        return [tensor.cuda() for tensor in tensors]

    def run(self, function, *tensors, **options):
        return function(*self.there(*tensors), **options)


def marked(name, wanted, reason, *marks):
    return pytest.param(name, marks=[*marks, pytest.mark.skipif(not wanted, reason=reason)])


@pytest.fixture(
    scope="module",
    params=[
        marked("host", COMPILER, "no C++ compiler on the PATH"),
        marked("gpu", torch.cuda.is_available(), "no CUDA device", pytest.mark.gpu),
    ],
)
def gpu(request, tmp_path_factory):
    if request.param == "gpu":
        pytest.importorskip("cupy")
        yield Gpu()
    else:
        with pytest.MonkeyPatch.context() as patch:
            yield Host(tmp_path_factory.mktemp("kernels"), patch)


def bits(x):
    x = x.cpu()
    return x.view(torch.int64) if x.dtype == torch.float64 else x


def assert_same_bits(ours, expected):
    torch.testing.assert_close(bits(ours), bits(expected), rtol=0, atol=0)


@st.composite
def rows(draw):
    """Rows, some longer than a block has threads, of a few hostile numbers."""
    shape = draw(st.tuples(st.integers(0, 4), st.integers(0, LONG_ROW)))
    pool = np.array(draw(st.lists(hostile, min_size=1, max_size=8)))
    return torch.from_numpy(np.random.default_rng(draw(seeds)).choice(pool, shape))


def products_and_exponents(seed, count):
    """Products of all sizes, some at the tie of p = 256, the first few zero; exponents to the ends of FP64's range."""
    random, (M, N) = np.random.default_rng(seed), (2, 70)
    wide = random.integers(-(2**31), 2**31, (count, M, N))
    narrow = wide >> random.integers(0, 32, (count, M, N))
    products_PMN = np.where(random.random((count, M, N)) < 0.2, wide // 256 * 256 + 128, narrow).astype(np.int32)
    products_PMN[: random.integers(count), 0] = 0
    exponent_M = np.array([0, random.choice([-100, 100])])
    exponent_N = random.choice([-1070, -990, 0, 900], N) + random.integers(-15, 15, N)
    return tuple(map(torch.from_numpy, (products_PMN, exponent_M, exponent_N)))


@few
@given(x_RK=rows())
def test_row_scales(gpu, x_RK):
    for ours, expected in zip(gpu.kernels.row_scales(*gpu.there(x_RK)), cpu.row_scales(x_RK), strict=True):
        assert_same_bits(ours, expected)


@few
@given(x_RK=rows(), slices=st.integers(1, 18), bits=st.integers(1, 7), descending=st.booleans())
def test_split(gpu, x_RK, slices, bits, descending):
    (R, K), D = x_RK.shape, gpu.kernels.depth(x_RK.shape[1])
    ours = gpu.kernels.workspace("digits", (R, slices, D), torch.int8).fill_(77)
    expected = torch.zeros((R, slices, D), dtype=torch.int8)
    slice_numbers = range(1, slices + 1)[:: -1 if descending else 1]
    (there,) = gpu.there(x_RK)
    gpu.kernels.split(there, gpu.kernels.row_scales(there), slice_numbers, bits, ours)
    cpu.split(x_RK, cpu.row_scales(x_RK), slice_numbers, bits, expected[:, :, :K])
    assert_same_bits(ours, expected)


def assert_same_residues(gpu, x_RK, shift_R, finite_R, constants):
    (R, K), D, L = x_RK.shape, gpu.kernels.depth(x_RK.shape[1]), len(constants.moduli_L)
    ours = gpu.kernels.workspace("residues", (L, R, D), torch.int8).fill_(77)
    expected = torch.zeros((L, R, D), dtype=torch.int8)
    gpu.kernels.residues(*gpu.there(x_RK, shift_R, finite_R), constants, ours)
    cpu.residues(x_RK, shift_R, finite_R, constants, expected[:, :, :K])
    assert_same_bits(ours, expected)


@few
@given(x_RK=rows(), count=counts)
def test_residues(gpu, x_RK, count):
    scales, constants = cpu.row_scales(x_RK), moduli(count)
    assert_same_residues(gpu, x_RK, shifts(scales, constants), scales.finite_R, constants)


@few
@given(quotient_K=hnp.arrays(np.int64, 8, elements=st.integers(-(2**44), 2**44)), shift=st.integers(0, 27))
def test_residues_next_to_a_tie(gpu, quotient_K, shift):
    p_L1 = torch.tensor(MODULI)[:, None]
    middle_LK = p_L1 * torch.from_numpy(quotient_K) + p_L1 // 2
    x_RK = torch.cat([middle_LK - 1, middle_LK, middle_LK + 1, -middle_LK]).double()
    R = len(x_RK)
    assert_same_residues(gpu, x_RK, torch.full((R,), shift), torch.ones(R, dtype=torch.bool), moduli(len(MODULI)))


@few
@given(shape=st.tuples(*[st.integers(1, 9)] * 3), first=st.integers(0, 2), last=st.integers(3, 4), seed=seeds)
def test_multiply_int8(gpu, shape, first, last, seed):
    """Operands are some of the columns of wider ones, and the product one of several."""
    (M, K, N), random = shape, np.random.default_rng(seed)
    D = gpu.kernels.depth(K)
    a, b = (torch.from_numpy(random.integers(-128, 128, (R, 4 * D), dtype=np.int8)) for R in (M, N))
    a_MK, b_NK = (x[:, first * D : last * D] for x in (a, b))
    products_PMN = torch.full((3, M, N), 77, dtype=torch.int32)
    expected = products_PMN.clone()
    expected[1] = a_MK.int() @ b_NK.int().T
    a, b, products_PMN = gpu.there(a, b, products_PMN)
    gpu.kernels.multiply_int8(a[:, first * D : last * D], b[:, first * D : last * D], products_PMN[1])
    assert_same_bits(products_PMN, expected)


@few
@given(seed=seeds, bits=st.integers(1, 7), diagonals=st.lists(st.integers(1, 3), min_size=8, max_size=18))
def test_accumulate(gpu, seed, bits, diagonals):
    diagonal_P = [t for t, several in enumerate(diagonals, 1) for _ in range(several)]
    products_PMN, *exponents = products_and_exponents(seed, len(diagonal_P))
    products, *there = gpu.there(products_PMN, *exponents)
    ours = gpu.kernels.accumulate(products, diagonal_P, bits, *there)
    assert_same_bits(ours, cpu.accumulate(products_PMN, diagonal_P, bits, *exponents))


@few
@given(seed=seeds, count=counts, blocks=st.integers(1, 3))
def test_reconstruct(gpu, seed, count, blocks):
    products_PMN, *exponents = products_and_exponents(seed, count * blocks)
    products, *there = gpu.there(products_PMN, *exponents)
    ours = gpu.kernels.reconstruct(products, moduli(count), *there)
    assert_same_bits(ours, cpu.reconstruct(products_PMN, moduli(count), *exponents))


@few
@given(seed=seeds, sizes=st.tuples(*[st.integers(1, 70)] * 3), wrong=st.integers(0, 3))
def test_propagate(gpu, seed, sizes, wrong):
    (M, K, N), random = sizes, np.random.default_rng(seed)
    a_MK, b_NK, c_MN = (torch.from_numpy(exponential(random, shape, 9)) for shape in ((M, K), (N, K), (M, N)))
    for x_RK in (a_MK, b_NK):
        x_RK[torch.from_numpy(random.random(x_RK.shape) < 0.3)] = 0.0
        for value in random.choice([np.inf, -np.inf, np.nan], wrong):
            x_RK[random.integers(len(x_RK)), random.integers(K)] = value
    finite = cpu.row_scales(a_MK).finite_R, cpu.row_scales(b_NK).finite_R
    ours, *there = gpu.there(c_MN.clone(), a_MK, b_NK, *finite)
    gpu.kernels.propagate(ours, *there)
    cpu.propagate(c_MN, a_MK, b_NK, *finite)
    assert_same_bits(ours, c_MN)


@few
@given(data=st.data())
def test_worst_ratio(gpu, data):
    M, N = data.draw(st.integers(1, 3)), data.draw(st.integers(1, LONG_ROW))
    sizes = st.one_of(st.just(0.0), st.floats(1e-300, 1e150), st.floats(0.1, 10))
    shapes = ((M, N), (M,), (M,), (N,), (N,))
    arguments = [torch.from_numpy(data.draw(hnp.arrays(np.float64, shape, elements=sizes))) for shape in shapes]
    assert gpu.kernels.worst_ratio(*gpu.there(*arguments)) == cpu.worst_ratio(*arguments)


def hostile_operands(shape, *, complex_=False):
    (M, K, N), random = shape, np.random.default_rng(sum(shape))
    a, b = exponential(random, (M, K), 2), exponential(random, (K, N), 2)
    a[0] *= 2.0**-1000
    a[-1, 0], b[K // 2, 0] = np.inf, np.nan
    b[:, -1] = 0.0
    if complex_:
        a, b = a + 1j * exponential(random, (M, K), 1), b - 1j * exponential(random, (K, N), 1)
    return torch.from_numpy(a), torch.from_numpy(b)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 40, 5), (17, 33, 70)])
@pytest.mark.parametrize(
    "multiply",
    [
        lambda a, b: scheme_one(a, b, slices=9),
        lambda a, b: scheme_one(a, b, slices=4, grouped=False),
        lambda a, b: scheme_two(a, b, moduli=15),
        lambda a, b: scheme_two(a, b, moduli=20, scaling="accurate"),
        lambda a, b: matmul(a, b, error="dgemm").value,
    ],
    ids=["scheme I", "pair by pair", "scheme II", "accurate scaling", "to an accuracy"],
)
def test_products_have_the_bits_of_the_cpu(gpu, monkeypatch, multiply, shape):
    monkeypatch.setattr(ozaki_two, "K_BLOCK", 16)
    a, b = hostile_operands(shape)
    assert_same_bits(gpu.run(multiply, a, b), multiply(a, b))


def test_a_complex_product_has_the_bits_of_the_cpu(gpu):
    a, b = hostile_operands((5, 33, 6), complex_=True)
    ours, expected = gpu.run(scheme_two, a, b, moduli=16), scheme_two(a, b, moduli=16)
    assert_same_bits(torch.view_as_real(ours), torch.view_as_real(expected))


def test_tensors_the_kernels_cannot_read_are_refused(gpu):
    (x_RK,) = gpu.there(torch.ones((4, 6), dtype=torch.float64))
    with pytest.raises(ValueError, match=r"row_scales: tensors of shapes \[\(6, 4\)\] are strided"):
        gpu.kernels.row_scales(x_RK.T)
    finite_R = torch.ones(4, dtype=torch.bool, device="meta")
    with pytest.raises(ValueError, match=r"meta.*torch\.cuda\.device_of"):
        gpu.kernels.propagate(x_RK.clone(), x_RK, x_RK, finite_R, finite_R)


def test_a_missing_cupy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ImportError, match=r"pip install 'kinji\[gpu\]'"):
        cuda._cupy.__wrapped__()


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_every_kernel_compiles_for_a_gpu(architecture):
    """And none contracts what rounds: fma stands only where the source says so."""
    nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason="NVRTC comes with torch for CUDA")
    source = cuda.SOURCE.read_text()
    _, program = nvrtc.nvrtcCreateProgram(source.encode(), b"kernels.cu", 0, None, None)
    options = [option.encode() for option in (*cuda.compiler_options(), f"--gpu-architecture={architecture}")]
    (result,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    assert result == nvrtc.nvrtcResult.NVRTC_SUCCESS, text(
        program, nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog
    )
    assert nvrtc.nvrtcGetCUBINSize(program)[1] > 0
    ptx = text(program, nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX)
    entries = dict(re.findall(r"\.entry (\w+)\((.*?)(?=\.entry|\Z)", ptx, re.DOTALL))
    assert set(entries) == set(KERNEL.findall(source))
    assert {name for name, body in entries.items() if "fma.rn.f64" in body} == {"reconstruct"}


def text(program, size_of, write):
    _, size = size_of(program)
    content = b" " * size
    write(program, content)
    return content.rstrip(b"\0").decode()

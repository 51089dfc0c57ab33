import hashlib
import itertools
import math
import os
import platform
import random
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kinji.gemm import cpu, scheme_one, scheme_two
from kinji.gemm.moduli import MODULI, moduli
from kinji.gemm.scales import integer_bits

from .strategies import ROUNDOFF, exponential_pair, finite, matrices, rounded

rows = st.tuples(st.integers(1, 4), st.integers(1, 5)).flatmap(lambda shape: matrices(*shape, finite))
tensor = torch.from_numpy
ROOT = Path(__file__).parents[2]
LEAST_ENERGY = 4.0**10  # of two rows that meet in numbers below 2^-6 of their peaks, by the accurate scaling
WIDEST = integer_bits(torch.tensor([LEAST_ENERGY], dtype=torch.float64), moduli(20)).item()


def two_to_the(e):
    return Fraction(2) ** int(e)


# measuring


@given(rows)
@example(np.array([[5e-324, 0.0], [1.7976931348623157e308, 5e-324], [0.0, -0.0], [1.0, 2.0**-1022]]))
def test_rows_are_measured_to_the_bit(x):
    exponents, energies, sums, spans, are_finite = (field.tolist() for field in cpu.row_scales(tensor(x)))
    assert all(are_finite)
    for row, e, energy, total, span in zip(x, exponents, energies, sums, spans, strict=True):
        magnitudes = [abs(Fraction(v)) for v in row if v]
        if not magnitudes:
            assert (e, energy, total, span) == (0, 0, 0, 0)
            continue
        assert two_to_the(e - 1) <= max(magnitudes) < two_to_the(e)
        assert two_to_the(e - span) == min(Fraction(v.numerator & -v.numerator, v.denominator) for v in magnitudes)
        scaled = [v * two_to_the(16 - e) for v in magnitudes]
        above = [math.ceil(v) for v in scaled]
        seen = [math.ceil(v) for v in scaled if v >= 2.0**-1022]  # less may vanish beside the greatest
        assert sum(seen) <= total <= sum(above)
        assert sum(q * q for q in seen) <= energy <= sum(q * q for q in above)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_rows_that_are_not_finite_count_as_zeros(bad):
    scales = cpu.row_scales(tensor(np.array([[1.0, bad, 3.0], [0.5, 0.25, 0.0]])))
    assert scales.finite_R.tolist() == [False, True]
    assert [field[0].item() for field in scales[:4]] == [0, 0, 0, 0]
    assert [field[1].item() for field in scales[:4]] == [0, 2.0**30 + 2.0**28, 2.0**15 + 2.0**14, 2]


# slices


def split(x, numbers, bits=7):
    scales = cpu.row_scales(tensor(x))
    digits = torch.empty((len(x), len(numbers), x.shape[1]), dtype=torch.int8)
    cpu.split(tensor(x), scales, numbers, bits, digits)
    return scales.exponent_R.tolist(), digits.numpy()


@given(rows, st.integers(1, 14), st.integers(1, 7))
def test_digits_and_a_small_remainder_make_up_every_entry(x, slices, bits):
    exponents, digits = split(x, range(1, slices + 1), bits)
    for (i, j), value in np.ndenumerate(x):
        units = [two_to_the(exponents[i] - bits * s) for s in range(1, slices + 1)]
        remainder = Fraction(value) - sum(int(d) * u for d, u in zip(digits[i, :, j], units, strict=True))
        assert abs(remainder) < units[-1]
        assert all(int(d) * value >= 0 and abs(int(d)) < 2**bits for d in digits[i, :, j])
        assert remainder * Fraction(value) >= 0  # truncated towards zero


def test_eight_slices_hold_a_row_of_one_magnitude_exactly():
    x = np.random.default_rng(0).uniform(1, 2, (3, 50))
    exponents, digits = split(x, range(1, 9))
    weights = 2.0 ** (np.array(exponents)[:, None] - 7 * np.arange(1, 9))
    assert (np.einsum("rsk,rs->rk", digits.astype(float), weights) == x).all()


@given(rows)
def test_slices_are_stored_in_the_order_asked_for(x):
    _, forward = split(x, range(1, 6))
    _, backward = split(x, range(5, 0, -1))
    np.testing.assert_array_equal(backward, forward[:, ::-1])


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_rows_that_are_not_finite_have_no_digits_and_no_residues(bad):
    x = np.array([[1.0, bad, 3.0], [0.5, 0.25, 1.0]])
    _, digits = split(x, range(1, 4))
    of_moduli = residues(x, torch.tensor([3, 2]), 2)
    assert not digits[0].any()
    assert not of_moduli[:, 0].any()
    assert of_moduli[:, 1].tolist() == [[2, 1, 4], [2, 1, 4]]


# residues


def residues(x, shift, count):
    out = torch.empty((count, *x.shape), dtype=torch.int8)
    cpu.residues(tensor(x), shift, tensor(np.isfinite(x).all(axis=1)), moduli(count), out)
    return out.numpy()


def assert_residues(x, shift, count):
    integers = [[int(Fraction(v) * two_to_the(s)) for v in row] for row, s in zip(x, shift.tolist(), strict=True)]
    for p, of_p in zip(MODULI, residues(x, shift, count), strict=False):
        assert np.abs(of_p.astype(int)).max() <= p // 2
        assert not ((np.array(integers, dtype=object) - of_p.astype(object)) % p).any()


@given(rows, st.integers(-5, WIDEST), st.integers(1, len(MODULI)))
def test_residues_are_those_of_the_truncated_integers(x, bits, count):
    assert_residues(x, bits - cpu.row_scales(tensor(x)).exponent_R, count)


@pytest.mark.parametrize("bits", [7, 8, 40, 53, 80, WIDEST])
def test_residues_are_right_for_many_integers_of_every_width(bits):
    x = np.random.default_rng(bits).uniform(-1, 1, (1, 4000))
    assert_residues(x, torch.tensor([bits]), 20)
    assert_residues(np.trunc(x * 2.0**24) + 0.5, torch.tensor([bits - 24]), 20)


# INT8 products


def random_int8(generator, *shape):
    return torch.randint(-127, 128, shape, dtype=torch.int8, generator=generator)


@given(st.integers(1, 70), st.integers(1, 200), st.integers(1, 70), st.integers(0, 2**32))
def test_full_range_products_of_strided_rows_are_exact(m, k, n, seed):
    generator = torch.Generator().manual_seed(seed)
    a, b = random_int8(generator, m, k + 3)[:, 2 : k + 2], random_int8(generator, n, k + 1)[:, :k]
    out = torch.empty((m, n), dtype=torch.int32)
    cpu.multiply_int8(a, b, out)
    assert torch.equal(out.long(), a.long() @ b.long().T)


def saturating_int_mm(a, b, *, out=None):
    """Sums of pairs of u8 x s8 products in saturating 16-bit arithmetic, as vpmaddubsw makes them."""
    b, even = b.T, a.shape[1] // 2 * 2
    pairs = torch.einsum("mkp,nkp->mnk", *(x[:, :even].reshape(len(x), -1, 2).int() for x in (a.int() + 128, b)))
    odd = (a[:, even:].int() + 128) @ b[:, even:].int().T
    product = pairs.clamp(-(2**15), 2**15 - 1).sum(-1).int() + odd - 128 * b.int().sum(1).int()
    return product if out is None else out.copy_(product)


@pytest.fixture
def saturating_unit(monkeypatch):
    monkeypatch.setattr(torch, "_int_mm", saturating_int_mm)
    cpu.int8_is_exact.cache_clear()
    yield
    cpu.int8_is_exact.cache_clear()


def test_the_fake_unit_saturates_only_wide_digits():
    wide, narrow = (torch.full((2, 10), digit, dtype=torch.int8) for digit in (127, 63))
    assert not saturating_int_mm(wide, wide.T).eq(10 * 127 * 127).any()
    assert saturating_int_mm(narrow, narrow.T).eq(10 * 63 * 63).all()


def both_schemes():
    a, b = exponential_pair(0, 48, 96, 40)
    return scheme_one(a, b, slices=9), scheme_two(a, b, moduli=15), scheme_two(a, b, moduli=15, scaling="accurate")


def test_a_unit_that_saturates_is_caught_and_the_same_bits_come_from_fp64(request):
    expected = both_schemes()
    request.getfixturevalue("saturating_unit")
    with pytest.warns(RuntimeWarning, match="saturates") as caught:
        products = [both_schemes() for _ in range(2)]
    assert len(caught) == 1
    for product in products:
        np.testing.assert_array_equal(product, expected)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="oneDNN saturates on x86 only")
def test_a_processor_without_vnni_is_caught_and_gives_the_same_bits():
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    command = [sys.executable, "-m", "tests.gemm.test_cpu"]
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    digest, exact, told = run.stdout.split()
    assert digest == hashlib.sha256(b"".join(x.tobytes() for x in both_schemes())).hexdigest()
    assert (exact, told) == ("False", "1")


def print_digest_of_both_schemes():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        digest = hashlib.sha256(b"".join(x.tobytes() for x in both_schemes())).hexdigest()
    print(digest, cpu.int8_is_exact(), sum(issubclass(w.category, RuntimeWarning) for w in caught))


# accumulation and reconstruction

exponents = st.integers(-1073, 1024)
int32 = st.integers(-(2**31), 2**31 - 1)


@given(st.data(), st.lists(st.integers(1, 4), min_size=1, max_size=8), st.integers(1, 7))
def test_diagonals_are_exact_sums_and_each_step_rounds_once(data, sizes, bits):
    diagonals = [t for t, size in enumerate(sizes, start=1) for _ in range(size)]
    products = data.draw(hnp.arrays(np.int32, (len(diagonals), 2, 2), elements=int32))
    e, f = (data.draw(hnp.arrays(np.int64, 2, elements=exponents)) for _ in "ef")
    result = cpu.accumulate(tensor(products), diagonals, bits, tensor(e), tensor(f))
    for i, j in itertools.product(range(2), repeat=2):
        c = 0.0
        for t in range(len(sizes), 0, -1):
            total = sum(int(x) for x, of in zip(products[:, i, j], diagonals, strict=True) if of == t)
            c = c * 2.0**-bits + total
        assert result[i, j] == rounded(Fraction(c) * two_to_the(e[i] + f[j] - 2 * bits))


def congruent_products(integers, count, blocks, rng):
    """Any products (int32) whose sums over blocks have the residues of the integers."""
    products = rng.integers(-(2**31), 2**31, (count, blocks, len(integers)))
    for p, of_p in zip(MODULI, products, strict=False):
        others = of_p[1:].sum(axis=0)
        of_p[0] = (
            np.array([(x - y) % p for x, y in zip(integers, others.tolist(), strict=True)]) + of_p[0] // 2 // p * p
        )
    return tensor(products.reshape(count * blocks, 1, -1).astype(np.int32))


def reconstructed(integers, count, blocks=1, e=0, f=0):
    products = congruent_products(integers, count, blocks, np.random.default_rng(count))
    return cpu.reconstruct(products, moduli(count), torch.tensor([e]), torch.full((len(integers),), f))[0].tolist()


def integers_of_all_sizes(count, number, seed=0):
    draw, capacity = random.Random(seed), int(moduli(count).capacity)
    sizes = [draw.randrange(capacity.bit_length()) for _ in range(number)]
    return [draw.choice((-1, 1)) * (draw.getrandbits(size) | 1 << max(size - 1, 0)) for size in sizes]


@pytest.mark.parametrize("blocks", [1, 2, 3])
@pytest.mark.parametrize("count", range(1, len(MODULI) + 1))
def test_integers_come_back_from_their_residues(count, blocks):
    capacity, loss = int(moduli(count).capacity), Fraction(moduli(count).loss)
    integers = [0, 1, -1, capacity, -capacity, *integers_of_all_sizes(count, 1500)]
    for x, c in zip(integers, reconstructed(integers, count, blocks), strict=True):
        if loss:
            assert abs(Fraction(c) - x) <= loss + ROUNDOFF * abs(x)
        else:
            assert c == rounded(x)


@given(st.integers(-(2**53), 2**53), exponents, exponents)
@example(-3, -1073, -2)
@example(2**53 - 1, 500, 471)
@example(2**53, 500, 471)
def test_scaling_rounds_once_even_into_subnormal_numbers_and_infinity(x, e, f):
    assert reconstructed([x], 15, e=e, f=f) == [rounded(x * two_to_the(e + f))]


# infinities, ratios, workspace


def test_only_the_entries_that_an_infinity_or_a_nan_reaches_are_written():
    a, b = torch.ones((3, 2), dtype=torch.float64), torch.ones((4, 2), dtype=torch.float64)
    a[1, 0], b[2, 1], c = torch.inf, torch.nan, torch.full((3, 4), 7.0, dtype=torch.float64)
    cpu.propagate(c, a, b, a.isfinite().all(1), b.isfinite().all(1))
    inf, nan = torch.inf, torch.nan
    np.testing.assert_array_equal(c, [[7, 7, nan, 7], [inf, inf, nan, inf], [7, 7, nan, 7]])


ratios = st.floats(0, 2.0**60)


@given(matrices(3, 4, ratios | st.just(np.inf)), *(hnp.arrays(np.float64, n, elements=ratios) for n in (3, 3, 4, 4)))
def test_the_worst_ratio_is_over_entries_that_can_err(lower, x_M, y_M, x_N, y_N):
    above = np.outer(x_M, y_N) + np.outer(y_M, x_N)
    matters = above > 0
    with np.errstate(divide="ignore", over="ignore"):
        expected = (above[matters] / lower[matters]).max(initial=0), lower[matters].min(initial=np.inf)
    assert cpu.worst_ratio(*(tensor(v) for v in (lower, x_M, y_M, x_N, y_N))) == expected


def test_the_workspace_is_one_s_own_by_name_and_thread():
    here = cpu.workspace("x", (4, 5), torch.int32)
    assert here.shape == (4, 5)
    assert cpu.workspace("x", (3,), torch.float64).data_ptr() == here.data_ptr()
    assert cpu.workspace("y", (4, 5), torch.int32).data_ptr() != here.data_ptr()
    assert cpu.workspace("x", (50, 5), torch.int32).shape == (50, 5)
    held = cpu.workspace("x", (1,), torch.int8)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(cpu.workspace, "x", (1,), torch.int8).result().data_ptr() != held.data_ptr()
    cpu.release_workspace()
    assert cpu.workspace("x", (1,), torch.int8).untyped_storage().nbytes() == 1


def test_products_made_in_several_threads_at_once_are_those_made_one_by_one():
    pairs = [exponential_pair(seed, 64, 64, 64) for seed in range(24)]
    expected = [scheme_two(*pair, moduli=15) for pair in pairs]
    if numba.threading_layer() == "workqueue":
        pytest.skip("numba's own threads take one caller at a time; install OpenMP or TBB")
    with ThreadPoolExecutor(4) as pool:
        np.testing.assert_array_equal(list(pool.map(lambda pair: scheme_two(*pair, moduli=15), pairs)), expected)


if __name__ == "__main__":
    print_digest_of_both_schemes()

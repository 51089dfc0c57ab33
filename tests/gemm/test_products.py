import os
import platform
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kinji.gemm import products
from kinji.gemm.products import anti_diagonal, exact_bits, multiply_int8, pairs_per_product

CPU = torch.device("cpu")
exact_multiply = multiply_int8


def random_int8(generator, *shape):
    return torch.randint(-127, 128, shape, dtype=torch.int8, generator=generator)


def saturating_multiply(a, b):
    """Sums of pairs of u8 x s8 products in saturating 16-bit arithmetic, as vpmaddubsw makes them."""
    even = a.shape[1] // 2 * 2
    pairs = torch.einsum("mkp,nkp->mnk", *(x[:, :even].reshape(len(x), -1, 2).int() for x in (a.int() + 128, b)))
    odd = (a[:, even:].int() + 128) @ b[:, even:].int().T
    return pairs.clamp(-(2**15), 2**15 - 1).sum(-1).int() + odd - 128 * b.int().sum(1).int()


@pytest.fixture
def fresh_self_test():
    exact_bits.cache_clear()
    yield
    exact_bits.cache_clear()


@given(st.integers(1, 70), st.integers(1, 200), st.integers(1, 70), st.integers(0, 2**32))
def test_full_range_products_are_exact(m, k, n, seed):
    generator = torch.Generator().manual_seed(seed)
    a, b = random_int8(generator, m, k), random_int8(generator, n, k)
    if exact_bits(CPU) < 7:
        a, b = a // 2, b // 2
    assert torch.equal(multiply_int8(a, b).long(), a.long() @ b.long().T)


@given(st.integers(1, 6), st.integers(1, 7), st.integers(0, 2**32))
def test_an_anti_diagonal_is_the_integer_sum_of_its_pairs(slices, pairs, seed):
    generator = torch.Generator().manual_seed(seed)
    a, b = random_int8(generator, 3, slices, 4) // 2, random_int8(generator, 5, slices, 4) // 2
    for t in range(1, slices + 1):  # b is stored last slice first
        expected = sum(a[:, p].long() @ b[:, slices - t + p].long().T for p in range(t))
        assert torch.equal(anti_diagonal(a, b, t, pairs).long(), expected)


@pytest.mark.parametrize(("k", "bits"), [(1, 7), (1000, 7), (2**17, 7), (2**19, 6), (2**29, 1)])
def test_grouping_takes_as_many_pairs_as_int32_holds(k, bits):
    pairs, largest = pairs_per_product(k, bits), (2**bits - 1) ** 2
    assert pairs * k * largest <= 2**31 - 1 < (pairs + 1) * k * largest
    assert pairs >= 1


def test_the_longest_sum_of_the_largest_digits_fits():
    digits = torch.full((1, 2, 2**17), 2 ** exact_bits(CPU) - 1, dtype=torch.int8)
    total = anti_diagonal(digits, digits, 2, pairs_per_product(2**17, 7))
    assert total.item() == 2 * 2**17 * (2 ** exact_bits(CPU) - 1) ** 2  # above INT32: added up in INT64


def test_this_processor_passes_or_says_why_not(fresh_self_test):
    if products._is_exact(7, CPU):
        assert exact_bits(CPU) == 7
    else:
        with pytest.warns(RuntimeWarning, match="saturates"):
            assert exact_bits(CPU) == 6


def test_the_self_test_catches_a_saturating_unit(fresh_self_test, monkeypatch):
    monkeypatch.setattr(products, "multiply_int8", saturating_multiply)
    with pytest.warns(RuntimeWarning, match="6 bits"):
        assert exact_bits(CPU) == 6


def test_a_unit_that_is_never_exact_is_refused(fresh_self_test, monkeypatch):
    monkeypatch.setattr(products, "multiply_int8", lambda a, b: exact_multiply(a, b) + 1)
    with pytest.raises(ArithmeticError, match="no slice width"):
        exact_bits(CPU)


def test_the_fake_unit_saturates_only_wide_digits():
    wide, narrow = (torch.full((2, 10), digit, dtype=torch.int8) for digit in (127, 63))
    assert not torch.equal(saturating_multiply(wide, wide), exact_multiply(wide, wide))
    assert saturating_multiply(narrow, narrow).eq(10 * 63 * 63).all()


WITHOUT_VNNI = """
import warnings, numpy as np, torch
from kinji.gemm import scheme_one, sample_reference
from kinji.gemm.products import exact_bits
a, b = np.random.default_rng(0).standard_normal((2, 96, 96))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    product = scheme_one(a, b, slices=10)
error = sample_reference(a, b, samples=200, seed=0).error_in_roundoffs(product)
print(exact_bits(torch.device("cpu")), len(caught), error < 4)
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="oneDNN saturates on x86 only")
def test_a_processor_without_vnni_is_caught_and_stays_accurate():
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_VNNI], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == ["6", "1", "True"]

from functools import partial

import numpy as np
import pytest
import torch

from kinji.gemm import matmul, published_slice_count, scheme_one, scheme_two, truncation_bound

from .strategies import exponential_pair

PRODUCTS = {
    "scheme one": partial(scheme_one, slices=9),
    "scheme two": partial(scheme_two, moduli=15),
    "accurate scheme two": partial(scheme_two, moduli=15, scaling="accurate"),
    "matmul": lambda a, b: matmul(a, b).value,
}
COMPLEX = [name for name in PRODUCTS if name != "accurate scheme two"]
products = pytest.mark.parametrize("multiply", PRODUCTS.values(), ids=PRODUCTS)
complex_products = pytest.mark.parametrize("multiply", [PRODUCTS[name] for name in COMPLEX], ids=COMPLEX)


def layouts(x):
    """The same matrix, stored in other ways."""
    frozen = x.copy()
    frozen.flags.writeable = False
    yield frozen
    yield np.asfortranarray(x)
    yield x[::-1, ::-1].copy()[::-1, ::-1]
    yield np.repeat(x, 2, axis=1)[:, ::2]
    yield np.vstack([x, x])[: len(x)]


@products
def test_arrays_of_any_layout_give_the_same_bits_and_stay_untouched(multiply):
    a, b = exponential_pair(0, 6, 20, 4)
    kept, expected = (a.copy(), b.copy()), multiply(a, b)
    assert isinstance(expected, np.ndarray)
    assert (expected.dtype, expected.shape) == (np.float64, (6, 4))
    for x, y in zip(layouts(a), layouts(b), strict=True):
        np.testing.assert_array_equal(multiply(x, y), expected)
        np.testing.assert_array_equal(multiply(y.T, x.T), expected.T)
    np.testing.assert_array_equal(a, kept[0])
    np.testing.assert_array_equal(b, kept[1])


@complex_products
def test_complex_arrays_of_any_layout_give_the_same_bits_and_stay_untouched(multiply):
    (a, b), (c, d) = exponential_pair(1, 6, 20, 4), exponential_pair(2, 6, 20, 4)
    a, b = a + 1j * c, b + 1j * d
    kept, expected = (a.copy(), b.copy()), multiply(a, b)
    assert (expected.dtype, expected.shape) == (np.complex128, (6, 4))
    for x, y in zip(layouts(a), layouts(b), strict=True):
        np.testing.assert_array_equal(multiply(x, y), expected)
    np.testing.assert_array_equal(a, kept[0])
    np.testing.assert_array_equal(b, kept[1])


@complex_products
def test_tensors_give_the_bits_of_arrays_whether_conjugated_or_with_a_gradient(multiply):
    (a, b), (c, d) = exponential_pair(1, 6, 20, 4), exponential_pair(2, 6, 20, 4)
    real, complex_ = (torch.from_numpy(x) for x in (a, a + 1j * c))
    y = torch.from_numpy(b + 1j * d)
    from_real = multiply(real.requires_grad_(), y.real)
    assert not from_real.requires_grad
    assert torch.equal(from_real, torch.from_numpy(multiply(a, b)))
    assert torch.equal(multiply(complex_.conj(), y), torch.from_numpy(multiply(a - 1j * c, b + 1j * d)))
    assert torch.equal(multiply(complex_.mH.mT, y.mT.mT), multiply(complex_.conj().resolve_conj(), y))
    assert torch.equal(multiply(complex_.conj().imag, y.real), torch.from_numpy(multiply(-c, b)))


@complex_products
def test_the_product_is_one_s_own(multiply):
    a, b = exponential_pair(3, 5, 6, 7)
    first = multiply(a, b)
    kept = first.copy()
    multiply(b.T, a.T)
    multiply(1j * b.T, a.T)
    np.testing.assert_array_equal(first, kept)


@products
def test_single_precision_is_widened(multiply):
    a, b = (x.astype(np.float32) for x in exponential_pair(4, 7, 30, 5))
    wide = a.astype(np.float64), b.astype(np.float64)
    expected = multiply(*wide)
    assert expected.dtype == np.float64
    for x, y in ((a, b), (a, wide[1]), (wide[0], b)):
        np.testing.assert_array_equal(multiply(x, y), expected)


@complex_products
def test_complex_operands_of_single_precision_and_real_ones_are_widened(multiply):
    (a, b), (c, d) = exponential_pair(5, 7, 30, 5), exponential_pair(6, 7, 30, 5)
    single = (a + 1j * c).astype(np.complex64), (b + 1j * d).astype(np.complex64)
    wide = [x.astype(np.complex128) for x in single]
    np.testing.assert_array_equal(multiply(*single), multiply(*wide))
    np.testing.assert_array_equal(multiply(a, single[1]), multiply(a.astype(np.complex128), wide[1]))
    np.testing.assert_array_equal(multiply(wide[0], b.astype(np.float32)), multiply(wide[0], b.astype(np.float32) + 0j))


@products
@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 0, 3), (3, 2, 0), (0, 0, 0), (1, 1, 1), (1, 7, 1), (2, 3, 1)])
def test_empty_and_tiny_products(multiply, shape):
    m, k, n = shape
    a, b = np.full((m, k), 3.0), np.full((k, n), -0.5)
    np.testing.assert_array_equal(multiply(a, b), a @ b)


@complex_products
@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 0, 3), (3, 2, 0), (1, 1, 1), (1, 7, 1)])
def test_empty_and_tiny_complex_products(multiply, shape):
    m, k, n = shape
    a, b = np.full((m, k), 3 + 2j), np.full((k, n), -0.5j)
    product = multiply(a, b)
    assert product.dtype == np.complex128
    np.testing.assert_array_equal(product, a @ b)


ones = np.ones((2, 2))
BAD_OPERANDS = [
    ((ones.astype(np.int64), ones), TypeError, "A is int64: convert"),
    ((ones, ones.astype(np.float16)), TypeError, "B is float16: convert"),
    ((torch.ones(2, 2), torch.ones((2, 2), dtype=torch.bfloat16)), TypeError, "B is torch.bfloat16: convert"),
    ((ones.astype(np.longdouble), ones), TypeError, "convert it to float64"),
    ((ones.astype(object), ones), TypeError, "A is object"),
    ((ones, torch.ones(2, 2)), TypeError, "two arrays or two tensors"),
    ((ones.tolist(), ones.tolist()), TypeError, "A is a list"),
    ((ones, None), TypeError, "two arrays or two tensors"),
    ((ones[0], ones), ValueError, r"A has shape \(2,\): pass a matrix"),
    ((ones, ones[None]), ValueError, r"B has shape \(1, 2, 2\): pass a matrix"),
    ((ones, np.ones((3, 2))), ValueError, r"A is \(2, 2\) and B is \(3, 2\)"),
    ((torch.ones(2, 2), torch.ones((2, 2), device="meta")), ValueError, "A is on cpu and B on meta"),
    ((torch.ones((2, 2), device="meta"),) * 2, ValueError, "operands on meta"),
]
CALLERS = {
    **PRODUCTS,
    "slices' bound": partial(truncation_bound, slices=9),
    "moduli's bound": partial(truncation_bound, moduli=9),
    "the published rule": published_slice_count,
}


@pytest.mark.parametrize("call", CALLERS.values(), ids=CALLERS)
@pytest.mark.parametrize(("bad", "error", "message"), BAD_OPERANDS)
def test_bad_operands_are_refused_by_name(call, bad, error, message):
    with pytest.raises(error, match=message):
        call(*bad)

from fractions import Fraction

import numba
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kinji.gemm import accumulation, ozaki_one, sample_reference, scheme_one, splitting, truncation_bound

from .strategies import exact_product, exponential, matrices, operands

rng = np.random.default_rng


@given(operands(), st.integers(1, 12))
def test_the_error_stays_below_the_bound_on_hostile_operands(ab, slices):
    a, b = ab
    product, truncation = scheme_one(a, b, slices=slices), truncation_bound(a, b, slices=slices)
    exact, magnitude = exact_product(a, b), exact_product(abs(a), abs(b))
    for (i, j), value in np.ndenumerate(product):
        rounding = slices * Fraction(2) ** -53 * magnitude[i][j] + Fraction(2) ** -1074
        assert abs(Fraction(value) - exact[i][j]) <= Fraction(truncation[i, j]) + rounding


integers = st.integers(-(2**24), 2**24).map(float)


@given(operands(elements=integers))
def test_integer_products_come_out_exactly(ab):
    a, b = ab
    assert scheme_one(a, b, slices=8).tolist() == [[float(x) for x in row] for row in exact_product(a, b)]


def test_each_slice_takes_seven_bits_off_the_error():
    a, b = exponential(rng(0), (2, 64, 64), 0.5)
    reference = sample_reference(a, b, samples=300, seed=0)
    errors = [reference.error_in_roundoffs(scheme_one(a, b, slices=s)) for s in range(3, 8)]
    falls = np.array(errors[:-1]) / errors[1:]
    assert ((falls > 2**6) & (falls < 2**8)).all()


@pytest.mark.parametrize("n", [64, 257])
def test_nine_slices_are_as_accurate_as_native_products(n):
    a, b = exponential(rng(1), (2, n, n), 0.5)
    reference = sample_reference(a, b, samples=1000, seed=0)
    assert reference.error_in_roundoffs(scheme_one(a, b, slices=9)) < reference.error_in_roundoffs(a @ b)


@given(operands(), st.integers(1, 12))
def test_grouping_changes_no_bit(ab, slices):
    grouped, single = (scheme_one(*ab, slices=slices, grouped=grouped) for grouped in (True, False))
    np.testing.assert_array_equal(grouped, single)


def test_grouping_changes_no_bit_where_int32_holds_only_part_of_an_anti_diagonal():
    k = 2**15 + 77  # at most four pairs fit
    a, b = exponential(rng(2), (3, k), 1.0), exponential(rng(3), (k, 5), 1.0)
    np.testing.assert_array_equal(scheme_one(a, b, slices=7), scheme_one(a, b, slices=7, grouped=False))


def test_inner_dimensions_beyond_two_to_the_seventeen_take_narrower_slices():
    k = 2**17 + 9
    a, b = exponential(rng(4), (2, k), 0.5), exponential(rng(5), (k, 2), 0.5)
    reference = sample_reference(a, b, samples=4, seed=0)
    assert reference.error_in_roundoffs(scheme_one(a, b, slices=11)) < 1


@given(operands(), st.integers(1, 12))
def test_transposed_operands_give_the_transposed_bits(ab, slices):
    a, b = ab
    np.testing.assert_array_equal(scheme_one(b.T, a.T, slices=slices), scheme_one(a, b, slices=slices).T)


@given(st.data(), st.integers(1, 10))
def test_powers_of_two_on_rows_of_a_and_columns_of_b_pass_through(data, slices):
    elements = st.floats(-(2.0**40), 2.0**40, allow_subnormal=False).filter(lambda x: x == 0 or abs(x) > 2.0**-40)
    a, b = data.draw(matrices(4, 5, elements)), data.draw(matrices(5, 3, elements))
    rows, columns = (
        2.0 ** np.array(data.draw(st.lists(st.integers(-300, 300), min_size=n, max_size=n))) for n in (4, 3)
    )
    scaled = scheme_one(rows[:, None] * a, b * columns, slices=slices)
    np.testing.assert_array_equal(scaled, rows[:, None] * scheme_one(a, b, slices=slices) * columns)


@pytest.fixture
def torch_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("torch_threads")
def test_threads_blocks_and_the_order_of_summation_change_no_bit():
    a, b = exponential(rng(6), (96, 130), 1.0), exponential(rng(7), (130, 70), 1.0)
    whole = scheme_one(a, b, slices=9)
    order = rng(8).permutation(130)
    np.testing.assert_array_equal(np.vstack([scheme_one(x, b, slices=9) for x in np.array_split(a, 5)]), whole)
    np.testing.assert_array_equal(np.hstack([scheme_one(a, x, slices=9) for x in np.array_split(b, 3, axis=1)]), whole)
    np.testing.assert_array_equal(scheme_one(a[:, order], b[order], slices=9), whole)
    assert (a[:, order] @ b[order] != a @ b).any()  # native products do depend on the order
    for threads in range(1, numba.config.NUMBA_NUM_THREADS + 1):
        numba.set_num_threads(threads)
        torch.set_num_threads(threads)
        np.testing.assert_array_equal(scheme_one(a, b, slices=9), whole)


def test_one_slice_fewer_changes_bits():
    a, b = exponential(rng(9), (2, 64, 64), 0.5)
    assert (scheme_one(a, b, slices=8) != scheme_one(a, b, slices=9)).mean() > 0.9


@given(operands(), st.integers(1, 12))
def test_tensor_operations_give_the_bits_of_the_compiled_loops(ab, slices):
    compiled = scheme_one(*ab, slices=slices)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splitting, "_split_compiled", splitting._split_tensor)
        patch.setattr(accumulation, "_shift_and_add_compiled", accumulation._shift_and_add_tensor)
        patch.setattr(accumulation, "_scale_compiled", accumulation._scale_tensor)
        np.testing.assert_array_equal(scheme_one(*ab, slices=slices), compiled)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 100, 7), (130, 515, 65)])
def test_a_gpu_gives_the_bits_of_the_cpu(shape):
    m, k, n = shape
    a, b = (torch.from_numpy(exponential(rng(s), size, 1.0)) for s, size in ((1, (m, k)), (2, (k, n))))
    assert torch.equal(scheme_one(a.cuda(), b.cuda(), slices=9).cpu(), scheme_one(a, b, slices=9))


def test_padded_storage_gives_the_same_bits(monkeypatch):
    a, b = exponential(rng(10), (5, 30), 1.0), exponential(rng(11), (30, 3), 1.0)
    plain = scheme_one(a, b, slices=6)
    monkeypatch.setattr(ozaki_one, "padded", lambda size, device: -(-size // 32) * 32)
    np.testing.assert_array_equal(scheme_one(a, b, slices=6), plain)


def test_arrays_and_tensors_of_any_layout_give_the_same_bits_and_stay_untouched():
    a, b = exponential(rng(12), (6, 20), 1.0), exponential(rng(13), (20, 4), 1.0)
    expected, kept = scheme_one(a, b, slices=9), (a.copy(), b.copy())
    frozen = a.copy()
    frozen.flags.writeable = False
    assert isinstance(expected, np.ndarray)
    for x, y in [(np.asfortranarray(a), np.asfortranarray(b)), (a[::-1][::-1], b[:, ::-1][:, ::-1]), (frozen, b)]:
        np.testing.assert_array_equal(scheme_one(x, y, slices=9), expected)
    np.testing.assert_array_equal(scheme_one(a[::-1], b, slices=9), expected[::-1])
    tensor = scheme_one(torch.from_numpy(a), torch.from_numpy(b).requires_grad_(), slices=9)
    assert torch.equal(tensor, torch.from_numpy(expected))
    np.testing.assert_array_equal(np.vstack([a, b.T[:, :20]]), np.vstack([kept[0], kept[1].T]))


@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 0, 3), (3, 2, 0), (1, 1, 1), (1, 7, 1), (2, 3, 1)])
def test_empty_and_tiny_products(shape):
    m, k, n = shape
    a, b = np.full((m, k), 3.0), np.full((k, n), -0.5)
    np.testing.assert_array_equal(scheme_one(a, b, slices=3), a @ b)


def test_overflow_is_infinite_and_underflow_rounds_to_subnormal_numbers():
    huge, tiny = np.array([[1e300, -1e300]]), np.array([[1e-170], [0.0]])
    assert scheme_one(huge, np.array([[1e300], [0.0]]), slices=9).item() == np.inf
    assert scheme_one(np.array([[3e-150, 0.0]]), tiny, slices=9).item() == 3e-150 * 1e-170


ones = np.ones((2, 2))
BAD_OPERANDS = [
    ((ones.astype(np.float32), ones), TypeError, "A is float32: convert"),
    ((ones, torch.ones(2, 2)), TypeError, "two arrays or two tensors"),
    ((ones.tolist(), ones.tolist()), TypeError, "A is a list"),
    ((ones[0], ones), ValueError, "two dimensions"),
    ((ones, np.ones((3, 2))), ValueError, r"A is \(2, 2\) and B is \(3, 2\)"),
    ((ones, ones * np.array([1, np.nan])), ValueError, "B: column 1 holds an infinity or a NaN"),
    ((ones * np.array([[1], [np.inf]]), ones), ValueError, "A: row 1"),
]


@pytest.mark.parametrize(("bad", "error", "message"), BAD_OPERANDS)
def test_bad_operands_are_refused_by_name(bad, error, message):
    with pytest.raises(error, match=message):
        scheme_one(*bad, slices=9)


@pytest.mark.parametrize("slices", [0, -1])
def test_no_slices_is_no_product(slices):
    with pytest.raises(ValueError, match="at least 1"):
        scheme_one(ones, ones, slices=slices)

import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kinji.gemm import accumulation
from kinji.gemm.accumulation import scale, shift_and_add

exponents = hnp.arrays(np.int64, 4, elements=st.integers(-1090, 1024))
sums = hnp.arrays(np.float64, (4, 4), elements=st.integers(-(2**60), 2**60).map(lambda i: i * 2.0**-90))


@given(sums, exponents, exponents)
def test_scaling_rounds_once_even_into_subnormal_numbers_and_infinity(c, e, f):
    expected = [[_ldexp(c[i, j], int(e[i] + f[j])) for j in range(4)] for i in range(4)]
    for kernel in (scale, accumulation._scale_tensor):
        result = torch.from_numpy(c.copy())
        kernel(result, torch.from_numpy(e), torch.from_numpy(f))
        np.testing.assert_array_equal(result.numpy(), expected)


def _ldexp(x, exponent):
    try:
        return math.ldexp(x, exponent)
    except OverflowError:
        return math.copysign(math.inf, x)


@given(sums, hnp.arrays(np.int64, (4, 4), elements=st.integers(-(2**40), 2**40)), st.integers(1, 7))
def test_horner_steps_of_loop_and_tensors_round_alike(c, diagonal, bits):
    expected = c * 2.0**-bits + diagonal
    for kernel in (shift_and_add, lambda c, d, b: accumulation._shift_and_add_tensor(c, d, 2.0**-b)):
        result = torch.from_numpy(c.copy())
        kernel(result, torch.from_numpy(diagonal), bits)
        np.testing.assert_array_equal(result.numpy(), expected)


def test_padding_of_the_diagonal_is_dropped():
    c = torch.zeros((2, 3), dtype=torch.float64)
    shift_and_add(c, torch.arange(20, dtype=torch.int32).reshape(4, 5), 7)
    assert c.tolist() == [[0, 1, 2], [5, 6, 7]]

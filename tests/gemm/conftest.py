import numba
import pytest


@pytest.fixture(autouse=True)
def one_thread():
    """Waking a second thread costs more than these small products."""
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    yield
    numba.set_num_threads(before)

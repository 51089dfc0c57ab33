"""What `kinji.gemm.cuda` uses of CuPy, on the CPU: kernels compiled by the host's compiler, and cuBLAS by NumPy.

It is as strict as what it stands for: arguments of 64 bits, cuBLAS's columns and alignments, a current stream.
"""

import ctypes
import re
import shutil
import struct
import subprocess
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from numpy.lib.stride_tricks import as_strided

SHIM = Path(__file__).with_name("cuda_on_host.h")
COMPILER = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
KERNEL = re.compile(r"__global__ void __launch_bounds__\(\w+\)\s+(\w+)\(")
ENTRY = (
    'extern "C" bool launch_{0}(unsigned rows, unsigned columns, unsigned threads, unsigned count,'
    " const std::uint64_t* words) {{ return launch({0}, rows, columns, threads, count, words); }}\n"
)
FLAGS = ("-std=c++17", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-w")


class FakeCupy:
    """The module `cupy`; work is to be started on `stream`."""

    def __init__(self, folder):
        self.folder, self.stream, self.entered = folder, object(), []
        cublas = SimpleNamespace(
            CUBLAS_OP_N=0, CUBLAS_OP_T=1, CUBLAS_COMPUTE_32I=72, CUBLAS_GEMM_DEFAULT=-1, gemmEx=self.gemm_ex
        )
        self.cuda = SimpleNamespace(
            Device=lambda at: self.enter(("device", at)),
            Stream=SimpleNamespace(from_external=lambda stream: self.enter(("stream", stream))),
            device=SimpleNamespace(get_cublas_handle=lambda: "handle"),
            cublas=cublas,
        )

    @contextmanager
    def enter(self, what):
        self.entered.append(what)
        yield
        assert self.entered.pop() == what

    def require_stream(self):
        assert self.entered[-1] == ("stream", self.stream), "no work outside torch's stream"

    def RawModule(self, *, code, options):
        source, library = self.folder / "kernels.cpp", self.folder / "kernels.so"
        entries = "".join(map(ENTRY.format, KERNEL.findall(code)))
        source.write_text(f'#include "{SHIM}"\n{code}\n{entries}')
        defines = [option for option in options if option.startswith("-D")]
        subprocess.run([COMPILER, *FLAGS, *defines, source, "-o", library], check=True)
        functions = ctypes.CDLL(str(library))
        return SimpleNamespace(get_function=lambda name: self.kernel(name, getattr(functions, f"launch_{name}")))

    def kernel(self, name, function):
        function.restype = ctypes.c_bool

        def launch(grid, block, arguments):
            self.require_stream()
            words = struct.pack(f"{len(arguments)}Q", *map(as_word, arguments))
            sizes = (*grid, 1)[:2], block
            assert all(0 < size < 2**31 for size in (*grid, *block))
            assert function(*sizes[0], *block, len(arguments), words), f"{name}: wrong arguments, or barriers"

        return launch

    def gemm_ex(self, handle, op_a, op_b, m, n, k, alpha, a, a_type, lda, b, b_type, ldb, beta, c, c_type, ldc, *how):
        """C = A^T B of matrices stored by columns."""
        self.require_stream()
        assert (handle, op_a, op_b, a_type, b_type, c_type, *how) == ("handle", 1, 0, 3, 3, 10, 72, -1)
        assert (read(alpha, ctypes.c_int32, 1)[0], read(beta, ctypes.c_int32, 1)[0]) == (1, 0)
        assert not any(size % 4 for size in (m, k, lda, ldb, ldc, a, b, c)), "what INT8 tensor cores ask for"
        assert lda >= k and ldb >= k and ldc >= m
        a_km = columns(a, ctypes.c_int8, k, m, lda)
        b_kn = columns(b, ctypes.c_int8, k, n, ldb)
        columns(c, ctypes.c_int32, m, n, ldc)[:] = a_km.T.astype(np.int32) @ b_kn.astype(np.int32)


def as_word(argument):
    """The 64 bits that CuPy passes."""
    assert isinstance(argument, (int, float)) and not isinstance(argument, bool), type(argument)
    return struct.unpack("Q", struct.pack("q" if isinstance(argument, int) else "d", argument))[0]


def read(address, kind, size):
    return np.ctypeslib.as_array((kind * size).from_address(address))


def columns(address, kind, rows, count, leading):
    """The matrix of `count` columns, `leading` numbers apart, at an address."""
    numbers = read(address, kind, (count - 1) * leading + rows)
    return as_strided(numbers, (rows, count), (numbers.itemsize, leading * numbers.itemsize))

"""Liger's kernels on a CPU: imported, in a process with TRITON_INTERPRET=1 in its environment, before Liger is.

Triton's interpreter lacks two things that a compiled kernel has. Numbers given to a kernel stay Python's, where a GPU
has float32; and the functions of the GPU's own mathematical library are empty. Both are supplied here. The kernels
themselves run as they are.
"""

import os

import numpy as np
import triton
import triton.language as tl
from triton.language.extra import libdevice
from triton.runtime import interpreter

assert os.environ.get("TRITON_INTERPRET") == "1", "set it before Triton is imported"

_convert = interpreter._implicit_cvt


def _convert_floats_too(value):
    if type(value) is float:
        return tl.tensor(interpreter.TensorHandle(np.array([value], dtype=np.float32), tl.float32), tl.float32)
    return _convert(value)


@triton.jit
def _rsqrt(x):
    return 1 / tl.sqrt(x)


@triton.jit
def _tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


interpreter._implicit_cvt = _convert_floats_too
libdevice.rsqrt = _rsqrt
libdevice.tanh = _tanh

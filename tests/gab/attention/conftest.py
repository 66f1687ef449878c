"""Triton's interpreter, which test_interpreter.py starts for the kernels, brought to know bfloat16."""

import os

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def bfloat16_in_the_interpreter():
    """It holds bfloat16 in integers of 16 bits, multiplies these, and cuts float32 off to them.

    As on a GPU, products are made of the numbers, and float32 is rounded to the nearest.
    """
    if os.environ.get("TRITON_INTERPRET") != "1":
        yield
        return
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def wide(x):
        if x.dtype.scalar != tl.bfloat16:
            return x
        return TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def narrow(self, x, dtype):
        if (x.dtype.scalar, dtype.scalar) != (tl.float32, tl.bfloat16):
            return create_fp_trunc(self, x, dtype)
        rounded = torch.from_numpy(np.array(x.data, np.float32)).to(torch.bfloat16)
        return TensorHandle(rounded.view(torch.uint16).numpy(), tl.bfloat16)

    create_dot, create_fp_trunc = InterpreterBuilder.create_dot, InterpreterBuilder.create_fp_trunc
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpreterBuilder, "create_dot", lambda s, a, b, *more: create_dot(s, wide(a), wide(b), *more))
        patch.setattr(InterpreterBuilder, "create_fp_trunc", narrow)
        yield

"""Triton's interpreter, which test_interpreter.py starts for the kernels, brought to know bfloat16."""

import os

import numpy as np
import pytest


@pytest.fixture(autouse=True, scope="session")
def bfloat16_in_the_interpreter():
    """It holds bfloat16 in integers of 16 bits, and multiplies these: products are made of float32 instead."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        yield
        return
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def wide(x):
        if x.dtype.scalar != tl.bfloat16:
            return x
        return TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    create_dot = InterpreterBuilder.create_dot
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpreterBuilder, "create_dot", lambda s, a, b, *more: create_dot(s, wide(a), wide(b), *more))
        yield

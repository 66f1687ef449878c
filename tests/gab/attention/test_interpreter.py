"""The tests of the kernels in Triton's interpreter, which has to be chosen before Triton is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FILES = [HERE / "test_fused.py", HERE / "test_fused_models.py"]


def interpret(which: str) -> None:
    """Asserts that the tests with marks like `which` pass, and that there are some."""
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", which, *FILES]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=HERE.parents[2], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


def test_kernels():
    interpret("not slow and not gpu")


@pytest.mark.slow
def test_kernels_in_more_shapes():
    interpret("slow")

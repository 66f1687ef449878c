"""Every kernel, compiled for GPUs that need not be there: its registers and its shared memory."""

import os
import re
import subprocess
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")
kernels = pytest.importorskip("gab.attention.fused")
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="compiles nothing")

TENSORS = {"rows": "*i32", "lse": "*fp32", "delta": "*fp32", "d_bias": "*fp32"}
INPUTS = ("q", "k", "v", "bias", "out", "d_out", "d_q", "d_k", "d_v")
SHARED = {80: 163, 86: 99, 89: 99, 90: 227}  # KiB of shared memory that a program may have, by compute capability


def build(kernel, tiles, *, tokens, depth, dtype, capability, bias=True, drops=False):
    """Compiles for a packed qkv of 12 heads."""
    columns = -(-tokens // kernels.COLUMNS) * kernels.COLUMNS
    constants = {"q_token": 36 * depth, "k_token": 36 * depth, "v_token": 36 * depth, "d_token": 12 * depth}
    constants |= {"windows": 1, "bias_row": columns, "heads": 12, "tokens": tokens, "D": depth, "HAS_BIAS": bias}
    constants |= {"BLOCK_D": kernels.filled_depth(depth), "BLOCK_M": tiles.queries, "BLOCK_N": tiles.keys}
    constants |= {"HAS_DROPOUT": drops, "PRECISION": "ieee", "BIAS_GRADIENT": bias}
    constants |= {"BLOCKS_N": triton.cdiv(tokens, tiles.keys)}
    signature, attributes = {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in INPUTS or name in TENSORS:
            signature[name] = TENSORS.get(name, f"*{dtype}")
            attributes[index,] = [["tt.divisibility", 16]]
        elif name in ("scale", "keep"):
            signature[name] = "fp32"
        else:
            signature[name] = "i32"
            if name.endswith(("_sample", "_head", "_window")) or name == "columns":
                attributes[index,] = [["tt.divisibility", 16]]
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    source = triton.compiler.ASTSource(kernel, signature, constants, attributes)
    target = triton.backends.compiler.GPUTarget("cuda", capability, 32)
    return triton.compile(source, target, {"num_warps": tiles.warps, "num_stages": tiles.stages})


def all_tiles(tokens, depth, dtype, capability):
    single, filled = dtype == "fp32", kernels.filled_depth(depth)
    return {
        kernels._forward: kernels.forward_tiles(single),
        kernels._backward_keys: kernels.key_tiles(filled, single),
        kernels._backward_queries: kernels.query_tiles(tokens, filled, single, capability == 90),
    }


def spilled(compiled, tmp_path):
    """Bytes per thread that did not find a register: numbers of the loop's outside, kept on the stack."""
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    usage = subprocess.run([tool, "-res-usage", cubin], check=True, capture_output=True, text=True).stdout
    return int(re.search(r"STACK:(\d+)", usage)[1])


@pytest.mark.slow
@pytest.mark.parametrize("capability", [90, 86])
@pytest.mark.parametrize("name", ["_forward", "_backward_keys", "_backward_queries"])
def test_fits(name, capability, tmp_path):
    """N = 196, D = 64, bfloat16."""
    kernel = getattr(kernels, name)
    tiles = all_tiles(196, 64, "bf16", capability)[kernel]
    compiled = build(kernel, tiles, tokens=196, depth=64, dtype="bf16", capability=capability)
    assert compiled.metadata.shared <= SHARED[86] * 1024
    allowed = {("_backward_queries", 90): 64, ("_backward_queries", 86): 600, ("_backward_keys", 86): 16}
    assert spilled(compiled, tmp_path) <= allowed.get((name, capability), 0)  # none of sm_90's in the loop


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tokens", "depth", "dtype", "drops"),
    [
        (49, 32, "bf16", False),
        (197, 80, "bf16", True),
        (257, 64, "fp16", False),
        (577, 64, "bf16", False),
        (1025, 64, "bf16", False),
        (196, 128, "bf16", False),
        (196, 64, "fp32", False),
    ],
)
def test_compiles(tokens, depth, dtype, drops):
    for kernel, tiles in all_tiles(tokens, depth, dtype, 90).items():
        compiled = build(kernel, tiles, tokens=tokens, depth=depth, dtype=dtype, capability=90, drops=drops)
        assert compiled.metadata.shared <= SHARED[86] * 1024

"""The kernels against float64, on a GPU or, started by test_interpreter.py, in Triton's interpreter on the CPU.

Errors are at most `TOLERANCE` of the largest value, of outputs and of every gradient; where a gradient is made of
differences, of the largest term.
"""

import os
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gab.attention import biased_attention
from gab.models.gaussian import bell, squared_distances
from gab.models.stochastic import AttentionDropout

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason="needs a GPU")
kernels = pytest.importorskip("gab.attention.fused")

DEVICE = "cpu" if INTERPRETED else "cuda"
TOLERANCE = {torch.float32: 4e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}
DTYPES = list(TOLERANCE)
FROM_SCORES = (1, 2, 4)  # gradients of q, k and the bias, made of dS, a difference of terms that may all but cancel


@pytest.fixture(autouse=True, scope="module")
def poisoned():
    """Memory that nobody has written holds NaN."""
    new_empty, empty_like = torch.Tensor.new_empty, torch.empty_like

    def poison(tensor):
        return tensor.fill_(float("nan")) if tensor.is_floating_point() and not tensor.is_meta else tensor

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "new_empty", lambda *args, **kwargs: poison(new_empty(*args, **kwargs)))
        patch.setattr(torch, "empty_like", lambda *args, **kwargs: poison(empty_like(*args, **kwargs)))
        yield


def problem(batch=2, heads=2, tokens=20, depth=16, windows=1, bias_heads=None, dtype=torch.float32, seed=0):
    """q, k, v as views of a packed tensor, a bias, and a gradient of the output."""
    torch.manual_seed(seed)
    qkv = torch.randn(batch, tokens, 3, heads, depth, dtype=dtype, device=DEVICE)
    bias = torch.randn(windows, bias_heads or heads, tokens, tokens, dtype=dtype, device=DEVICE)
    d_out = torch.randn(batch, tokens, heads, depth, dtype=dtype, device=DEVICE).transpose(1, 2)
    return (*qkv.permute(2, 0, 3, 1, 4), bias), d_out


def solve(inputs, d_out, backend="fused", dropout=None, dtype=None):
    """The output, and the gradients of all inputs that are not None."""
    leaves = [None if x is None else x.detach().to(dtype or x.dtype).requires_grad_() for x in inputs]
    out = biased_attention(*leaves, dropout=dropout, backend=backend)
    return [out, *torch.autograd.grad(out, [x for x in leaves if x is not None], d_out.to(out.dtype))]


def check(inputs, d_out, dropout=None):
    """Asserts that the kernels give what the definition gives in float64."""
    solved, exactly = solve(inputs, d_out, dropout=dropout), solve(inputs, d_out, "reference", dropout, torch.float64)
    terms = (d_out.double() @ inputs[2].double().transpose(-1, -2)).abs().max()
    for place, (got, exact) in enumerate(zip(solved, exactly, strict=True)):
        assert got.dtype == inputs[0].dtype
        scale = exact.abs().max().clamp_min(1.0)
        if place in FROM_SCORES:
            scale = scale.maximum(terms)
        assert (got - exact).abs().max() / scale < TOLERANCE[got.dtype]  # false for NaN
    return solved


shapes = st.builds(
    SimpleNamespace,
    images=st.integers(1, 3),
    windows=st.integers(1, 2),
    heads=st.integers(1, 2),
    one_bias=st.booleans(),
    tokens=st.sampled_from([1, 2, 15, 16, 17, 31, 33, 49, 65, 70]),
    depth=st.sampled_from([1, 8, 16, 20, 32, 40, 64, 80, 96, 128]),
    dtype=st.sampled_from(DTYPES),
    drops=st.booleans(),
    seed=st.integers(0, 100),
)
quiet = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True, "database": None}


def random_shape(s):
    bias_heads = 1 if s.one_bias else s.heads
    shape = (s.images * s.windows, s.heads, s.tokens, s.depth, s.windows, bias_heads, s.dtype, s.seed)
    dropout = AttentionDropout(0.3) if s.drops else None
    if dropout:
        dropout.keys = torch.arange(s.images * s.windows, device=DEVICE)
    check(*problem(*shape), dropout)


test_random_shapes = settings(max_examples=8 if INTERPRETED else 60, **quiet)(given(shapes)(random_shape))
test_more_random_shapes = pytest.mark.slow(settings(max_examples=30, **quiet)(given(shapes)(random_shape)))


SIZES = [(16, 32), (49, 32), (64, 64), (144, 96), (196, 64), (197, 80), (256, 128), (577, 64), (1024, 64), (1025, 128)]


def sized(tokens, depth):
    """In the interpreter, 144 tokens take seconds, and 1,024 minutes."""
    if not INTERPRETED or tokens < 100:
        return tokens, depth
    return pytest.param(tokens, depth, marks=pytest.mark.slow if tokens < 1000 else pytest.mark.gpu)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "depth"), [sized(*size) for size in SIZES])
def test_sizes_of_vision(tokens, depth, dtype):
    """Windows and grids, with and without a class token."""
    check(*problem(*((1, 1) if INTERPRETED else (5, 3)), tokens, depth, dtype=dtype))


@pytest.mark.parametrize("tokens", [1, 36])
def test_without_bias(tokens):
    (q, k, v, _), d_out = problem(1, 1, tokens)
    check((q, k, v, None), d_out)


def test_strides():
    """Contiguous, expanded, and with D not the last in memory."""
    (q, k, v, bias), d_out = problem(2, 1, 18, 16)
    q, k, v = q.contiguous(), k.transpose(-1, -2).contiguous().transpose(-1, -2), v[:, :1].expand(-1, 1, -1, -1)
    assert k.stride(-1) != 1
    check((q, k, v, bias.transpose(-1, -2)), torch.ones_like(d_out[:1, :1, :1, :1]).expand_as(d_out))


def test_a_bias_for_keys_alone():
    (q, k, v, bias), d_out = problem(2, 2, 20)
    check((q, k, v, bias[:, :, :1]), d_out)


def test_far_strides():
    """Of a sample whose places 32 bits do not hold."""
    (near,) = kernels._readable(torch.empty_strided((1, 2, 3, 4), (2**33, 4, 2**30, 1), device="meta"))
    assert near.is_contiguous()
    (same,) = kernels._readable(torch.empty_strided((2, 2, 3, 4), (2**33, 4, 2**29, 1), device="meta"))
    assert same.stride() == (2**33, 4, 2**29, 1)


def test_no_gradient_past_the_keys():
    """Of the columns that fill a bias up, whether a block of keys reaches them or not."""
    (q, k, v, bias), d_out = problem(1, 1, 20)
    leaf = kernels.padded(bias).requires_grad_()
    (found,) = torch.autograd.grad(kernels.attention(q, k, v, leaf, None, 0.0)[0], leaf, d_out)
    assert found.shape[-1] == 64
    assert not found[..., 20:].any()


@pytest.mark.parametrize(
    ("setting", "value"), [("fp32_precision", "tf32"), ("fp32_precision", "ieee"), ("allow_tf32", True)]
)
def test_products_of_float32_are_what_pytorch_says(setting, value):
    """By the older and by the newer of its two settings."""
    (q, k, v, _), _ = problem(1, 1, 5)
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        setattr(torch.backends.cuda.matmul, setting, value)
        found = kernels._Problem(q, k, v, None, None, 0.0).constants["PRECISION"]
    finally:
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        torch.backends.cuda.matmul.allow_tf32 = before
    assert found == ("ieee" if value == "ieee" else "tf32")


def test_nothing_is_read_beside_the_inputs():
    """Which lie between NaN, the bias too."""

    def between(x):
        surroundings = x.new_full((3 * x.shape[0], *x.shape[1:]), float("nan"))
        return surroundings[len(x) : 2 * len(x)].copy_(x)

    inputs, d_out = problem(1, 2, 35, 20)
    expected = solve(inputs, d_out, "reference", dtype=torch.float64)
    padded_bias = between(kernels.padded(inputs[3])).requires_grad_()
    leaves = [between(x.detach().contiguous()).requires_grad_() for x in inputs[:3]]
    out = kernels.attention(*leaves, padded_bias, None, 0.0)[0]
    found = [out, *torch.autograd.grad(out, [*leaves, padded_bias], between(d_out.contiguous()))]
    found[-1] = found[-1][..., :35]
    for got, exact in zip(found, expected, strict=True):
        assert (got - exact).abs().max() < TOLERANCE[torch.float32] * exact.abs().max()


def test_heads_are_joined_without_a_copy():
    inputs, d_out = problem(2, 2, 18)
    for x in solve(inputs, d_out)[:4]:
        assert x.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sigma", [0.3, 5.0, 100.0])
def test_gaussian(sigma, dtype):
    (q, k, v, _), d_out = problem(1, 1, 25, 16, dtype=dtype)
    bias = bell(2.0, torch.tensor([[[sigma]]]), squared_distances((5, 5)))[None].to(DEVICE, dtype)
    check((q, k, v, bias), d_out)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [30.0, 300.0])
def test_large_logits(size, dtype):
    """Of q kᵀ and of the bias, where exp overflows.

    One weight of a row is nearly 1 then, and dS the difference of two nearly equal terms of up to 10: within 1e-4 in
    float32, and twice the usual in half precision, where delta is made of an output that was rounded.
    """
    (q, k, v, bias), d_out = problem(1, 1, 40, dtype=dtype)
    q, k = (size * q).round(), k.round()  # whose scores have no rounding error
    inputs = q, k, v, (size * bias).round()
    solved = solve(inputs, d_out)
    for got, exact in zip(solved, solve(inputs, d_out, "reference", dtype=torch.float64), strict=True):
        assert (got - exact).abs().max() < max(2 * TOLERANCE[dtype], 1e-4) * exact.abs().max()


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_scores(dtype):
    (q, k, v, bias), d_out = problem(1, 2, 35, dtype=dtype)
    out, d_q, *_ = check((torch.zeros_like(q), torch.zeros_like(k), v, torch.full_like(bias, 7.0)), d_out)
    assert (out - v.double().mean(2, keepdim=True)).abs().max() < TOLERANCE[dtype]
    assert not d_q.any()


def test_excluded_keys():
    """The whole of the first block of keys for one query."""
    (q, k, v, bias), d_out = problem(1, 1, 40)
    bias[..., 0, :35] = -float("inf")
    bias[..., 1, 3] = -float("inf")
    check((q, k, v, bias), d_out)


def test_bias_without_gradient():
    (q, k, v, bias), d_out = problem(2, 1, 34)
    leaf = q.detach().requires_grad_()
    out = biased_attention(leaf, k, v, bias, backend="fused")
    expected = solve((q, k, v, bias), d_out)
    assert torch.equal(out, expected[0])
    assert torch.equal(torch.autograd.grad(out, leaf, d_out)[0], expected[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_again(dtype):
    inputs, d_out = problem(*((5, 2, 34) if INTERPRETED else (96, 6, 197, 64)), dtype=dtype)
    for first, second in zip(solve(inputs, d_out), solve(inputs, d_out), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("programs", [1, 8, 10_000])
def test_any_number_of_splits(programs, monkeypatch):
    monkeypatch.setattr(kernels, "PROGRAMS", programs)
    check(*problem(5, 1, 18, windows=1, bias_heads=1))


def test_dropout_is_that_of_the_definition():
    """One pattern for all backends: the identity as v shows it."""
    (q, k, _, bias), _ = problem(2, 2, 32, 32)
    v = torch.eye(32, device=DEVICE).expand(2, 2, 32, 32)
    dropout = AttentionDropout(0.4)
    dropout.keys = torch.tensor([3, 4], device=DEVICE)
    zeros = [biased_attention(q, k, v, bias, dropout=dropout, backend=name) == 0 for name in ("fused", "sdpa")]
    assert torch.equal(*zeros)
    assert 0.3 < zeros[0].float().mean() < 0.5


def test_registration():
    (q, k, v, bias), d_out = problem(1, 2, 18)
    q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(kernels.attention, (q, k, v, kernels.padded(bias), None, 0.0), test_utils=checks)
    out, lse = kernels.attention(q, k, v, kernels.padded(bias), None, 0.0)
    arguments = (d_out, q, k, v, kernels.padded(bias), None, out, lse, 0.0, True)
    arguments = tuple(x.detach() if isinstance(x, torch.Tensor) else x for x in arguments)
    torch.library.opcheck(kernels.attention_backward, arguments, test_utils=("test_schema", "test_faketensor"))


def test_second_derivatives_are_refused():
    (q, k, v, bias), d_out = problem(1, 1, 18)
    leaf = q.detach().requires_grad_()
    out = biased_attention(leaf, k, v, bias, backend="fused")
    (gradient,) = torch.autograd.grad(out, leaf, d_out, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        torch.autograd.grad(gradient.sum(), leaf)


def test_no_images():
    (q, k, v, bias), _ = problem(2, 2, 18)
    leaf = bias.requires_grad_()
    out = biased_attention(q[:0], k[:0], v[:0], leaf, backend="fused")
    out.sum().backward()
    assert out.shape == (0, 2, 18, 16)
    assert not leaf.grad.any()


def test_compiled_without_breaks():
    inputs, d_out = problem(2, 2, 18)
    dropout = AttentionDropout(0.3)
    dropout.keys = torch.arange(2, device=DEVICE)
    expected = solve(inputs, d_out, dropout=dropout)
    leaves = [x.detach().requires_grad_() for x in inputs]
    compiled = torch.compile(biased_attention, fullgraph=True, backend="aot_eager" if INTERPRETED else "inductor")
    out = compiled(*leaves, dropout=dropout, backend="fused")
    for got, wanted in zip([out, *torch.autograd.grad(out, leaves, d_out)], expected, strict=True):
        assert torch.allclose(got, wanted, atol=1e-6)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed(reentrant):
    inputs, d_out = problem(2, 1, 18)
    dropout = AttentionDropout(0.3)  # without keys: from the global generator
    leaves = [x.detach().requires_grad_() for x in inputs]
    torch.manual_seed(1)
    expected = solve(inputs, d_out, dropout=dropout)
    torch.manual_seed(1)
    attend = partial(biased_attention, dropout=dropout, backend="fused")
    out = torch.utils.checkpoint.checkpoint(attend, *leaves, use_reentrant=reentrant)
    out.backward(d_out)
    for got, wanted in zip([out, *(x.grad for x in leaves)], expected, strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(dtype):
    """As matrix products do, attention takes the lower precision."""
    inputs, d_out = problem(1, 1, 18)
    with torch.autocast(DEVICE, dtype):
        low = solve(inputs, d_out)
    exact = solve(inputs, d_out, "reference", dtype=torch.float64)
    assert low[0].dtype == dtype
    for got, wanted in zip(low, exact, strict=True):
        assert (got - wanted).abs().max() < TOLERANCE[dtype] * wanted.abs().max()


class Layer(torch.nn.Module):
    """Attention with a bias that is learned."""

    def __init__(self, bias):
        super().__init__()
        self.bias = torch.nn.Parameter(bias.clone())

    def forward(self, q, k, v):
        return biased_attention(q, k, v, self.bias, backend="fused")


def test_distributed(tmp_path):
    """One process of DDP gives the gradients that there are without it."""
    (q, k, v, bias), d_out = problem(2, 2, 18)
    torch.distributed.init_process_group(
        "gloo" if INTERPRETED else "nccl",
        store=torch.distributed.FileStore(str(tmp_path / "store"), 1),
        rank=0,
        world_size=1,
    )
    try:
        layer = Layer(bias)
        torch.nn.parallel.DistributedDataParallel(layer)(q, k, v).backward(d_out)
    finally:
        torch.distributed.destroy_process_group()
    assert torch.equal(layer.bias.grad, solve((q, k, v, bias), d_out)[4])


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED, reason="needs a GPU")
def test_memory():
    """Nothing of the size (B, H, N, N), which would be 118 MB."""
    inputs, d_out = problem(256, 6, 196, 64, dtype=torch.bfloat16)
    solve(inputs, d_out)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    solve(inputs, d_out)
    known = 4 * inputs[0].numel() * 2 + 2**25 + 2**24  # O, dQ, dK, dV; the workspace; the bias, L, delta and such
    assert torch.cuda.max_memory_allocated() - before < known

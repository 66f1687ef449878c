"""The definition and PyTorch's fused attention; the kernels have test_fused.py."""

import pytest
import torch

from gab.attention import biased_attention
from gab.errors import UserError
from gab.models.stochastic import AttentionDropout

BACKENDS = ("reference", "sdpa")


def direct(q, k, v, bias):
    """Sample by sample and head by head, in float64."""
    out = torch.empty_like(q, dtype=torch.float64)
    for b in range(len(q)):
        for h in range(q.shape[1]):
            scores = q[b, h].double() @ k[b, h].double().T / q.shape[-1] ** 0.5
            part = bias[b % len(bias)]
            scores = scores + part[h % len(part)].double()
            out[b, h] = scores.softmax(-1) @ v[b, h].double()
    return out


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(1, 3, 10, 10), (1, 1, 10, 10), (2, 3, 10, 10), (4, 1, 10, 10), (1, 3, 1, 10)])
def test_against_the_definition(backend, shape):
    q, k, v = torch.randn(3, 4, 3, 10, 8)
    bias = 3 * torch.randn(shape)
    assert torch.allclose(biased_attention(q, k, v, bias, backend=backend).double(), direct(q, k, v, bias), atol=1e-6)


@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
@pytest.mark.parametrize("shape", [(3, 3, 10, 10), (1, 2, 10, 10), (1, 3, 9, 10), (1, 3, 10, 9), (10, 10)])
def test_a_bias_that_does_not_fit_is_refused(backend, shape):
    q, k, v = torch.randn(3, 4, 3, 10, 8)
    with pytest.raises(UserError, match="does not fit 4 samples of 3 heads and 10 tokens"):
        biased_attention(q, k, v, torch.zeros(shape), backend=backend)


def test_other_tokens_than_the_queries_are_refused():
    q, k, v = torch.randn(3, 4, 3, 10, 8)
    with pytest.raises(UserError, match=r"\(4, 3, 9, 8\), \(4, 3, 10, 8\)"):
        biased_attention(q, k[:, :, :9], v)


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_bias(backend):
    q, k, v = torch.randn(3, 2, 3, 10, 8)
    expected = direct(q, k, v, torch.zeros(1, 1, 10, 10))
    assert torch.allclose(biased_attention(q, k, v, backend=backend).double(), expected, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("windows", [1, 2])
def test_gradcheck(backend, windows):
    q, k, v = torch.randn(3, 2, 2, 3, 2, dtype=torch.float64)
    bias = torch.randn(windows, 2, 3, 3, dtype=torch.float64)
    inputs = [t.clone().requires_grad_() for t in (q, k, v, bias)]
    assert torch.autograd.gradcheck(lambda *args: biased_attention(*args, backend=backend), inputs)


def test_weights_are_shown_to_hooks():
    dropout = AttentionDropout(0.0)
    seen = []
    dropout.register_forward_hook(lambda module, args, output: seen.append(output))
    q, k, v = torch.randn(3, 2, 3, 5, 8)
    biased_attention(q, k, v, dropout=dropout)
    assert torch.allclose(seen[0].sum(-1), torch.ones(2, 3, 5))


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_only_in_training(backend):
    q, k, v = torch.randn(3, 2, 3, 5, 8)
    dropout = AttentionDropout(0.5)
    assert not torch.equal(
        biased_attention(q, k, v, dropout=dropout, backend=backend), biased_attention(q, k, v, backend=backend)
    )
    assert torch.equal(
        biased_attention(q, k, v, dropout=dropout.eval(), backend=backend), biased_attention(q, k, v, backend=backend)
    )

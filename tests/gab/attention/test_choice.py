import sys

import pytest
import torch
from torch import nn

from gab.attention import biased, biased_attention, choice
from gab.errors import UserError
from gab.models.stochastic import AttentionDropout

CUDA = torch.device("cuda")


class OnGPU:
    """What the rule asks of q, on a GPU that need not be there."""

    is_cuda, device = True, CUDA

    def __init__(self, tokens=196, depth=64, dtype=torch.bfloat16):
        self.shape, self.dtype = (2, 3, tokens, depth), dtype


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(choice, "_lacks", lambda device: None if device == "cuda" else "no CUDA")


@pytest.mark.parametrize(
    ("q", "bias", "dropout", "chosen"),
    [
        (OnGPU(), True, None, "fused"),
        (OnGPU(), True, 0.0, "fused"),
        (OnGPU(), False, None, "sdpa"),
        (OnGPU(), False, 0.0, "sdpa"),
        (OnGPU(), False, 0.1, "fused"),
        (OnGPU(depth=129), True, None, "sdpa"),
        (OnGPU(tokens=1089), True, None, "sdpa"),
        (OnGPU(tokens=1025, depth=128), True, None, "fused"),
        (OnGPU(dtype=torch.float64), True, None, "sdpa"),
        (torch.zeros(2, 3, 196, 64), True, None, "sdpa"),
    ],
)
def test_rule(gpu, q, bias, dropout, chosen):
    module = None if dropout is None else AttentionDropout(dropout)
    assert choice.choose("auto", q, torch.zeros(()) if bias else None, module) == chosen


def test_evaluation_has_no_dropout(gpu):
    assert choice.choose("auto", OnGPU(), None, AttentionDropout(0.1).eval()) == "sdpa"


def test_hooks_and_explicit_names(gpu):
    dropout = AttentionDropout()
    for name in ("reference", "sdpa", "fused"):
        assert choice.choose(name, OnGPU(), torch.zeros(()), dropout) == name
    dropout.register_forward_hook(lambda *args: None)
    assert choice.choose("auto", OnGPU(), torch.zeros(()), dropout) == "reference"


def test_the_environment_takes_the_place_of_auto(gpu, monkeypatch):
    monkeypatch.setattr(choice, "FORCED", "reference")
    assert choice.choose("auto", OnGPU(), None, None) == "reference"
    assert choice.choose("sdpa", OnGPU(), None, None) == "sdpa"
    assert choice.wanted("sdpa") == "reference"


def test_what_is_impossible_is_refused(monkeypatch):
    monkeypatch.setattr(choice, "_uninstalled", lambda device: None if device == "cuda" else "no CUDA")
    choice._lacks.cache_clear()
    q = torch.zeros(1, 1, 4, 8)
    with pytest.raises(UserError, match=r"\(no CUDA\): set run.attention=auto"):
        biased_attention(q, q, q, backend="fused")
    with pytest.raises(UserError, match="no CUDA"):
        choice.check("fused", "cpu")
    choice.check("fused", "cuda")
    with pytest.raises(UserError, match="run.attention=flash is unknown: choose one of auto, reference"):
        choice.check("flash", "cuda")
    with pytest.raises(UserError, match="run.attention=flash"):
        biased_attention(q, q, q, backend="flash")
    monkeypatch.setattr(choice, "FORCED", "flash")
    with pytest.raises(UserError, match="GAB_ATTENTION=flash is unknown"):
        choice.check("auto", "cpu")


def test_what_the_kernels_cannot_take_is_refused(gpu):
    for q, reason in (
        (OnGPU(depth=129), "129 channels"),
        (OnGPU(tokens=2000), "2000 tokens"),
        (OnGPU(dtype=torch.float64), "float64"),
    ):
        with pytest.raises(UserError, match=reason):
            choice.choose("fused", q, None, None)


@pytest.fixture
def no_triton(monkeypatch):
    """Imports of it fail, and nothing has imported it before."""
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "gab.attention.fused", raising=False)
    monkeypatch.delattr("gab.attention.fused", raising=False)
    choice._lacks.cache_clear()
    yield
    choice._lacks.cache_clear()


def test_without_triton(no_triton):
    assert choice._missing("cuda") == "no Triton"
    assert choice.choose("auto", OnGPU(), torch.zeros(()), None) == "sdpa"
    with pytest.raises(UserError, match=r"\(no Triton\): set run.attention=auto"):
        choice.check("fused", "cuda")
    q = torch.randn(2, 2, 5, 8)
    bias = torch.randn(1, 2, 5, 5)
    results = [biased_attention(q, q, q, bias, backend=name) for name in ("auto", "sdpa", "reference")]
    assert torch.equal(results[0], results[1])
    assert torch.allclose(results[0], results[2], atol=1e-6)


def test_a_run_without_triton(no_triton, tiny_run, tmp_path, capfd, figures_are_not_drawn):
    """Trains as ever, and names the backend once."""
    tiny_run(tmp_path, "model.gab=true", "train.epochs=1", "train.max_steps=2")
    said = "".join(capfd.readouterr())
    assert said.count("attention: sdpa (no Triton)") == 1
    assert said.count("attention:") == 1
    assert "gab.attention.fused" not in sys.modules


def test_the_log_names_it(gpu, monkeypatch):
    model = nn.Sequential(nn.Linear(2, 2))
    assert choice.describe(model, "auto", CUDA) is None
    model[0].attention_backend, model[0].fused_attn = "auto", True
    assert choice.describe(model, "auto", torch.device("cpu")) == "sdpa (no CUDA)"
    described = "fused where scores have a bias and at most 1088 tokens, sdpa elsewhere"
    assert choice.describe(model, "auto", CUDA) == described
    assert choice.describe(model, "sdpa", CUDA) == "sdpa (run.attention)"
    monkeypatch.setattr(choice, "FORCED", "reference")
    assert choice.describe(model, "sdpa", CUDA) == "reference (GAB_ATTENTION)"
    model[0].fused_attn = False
    assert choice.describe(model, "sdpa", CUDA) == "reference (TIMM_FUSED_ATTN)"


def test_export_takes_the_definition(monkeypatch):
    class Module(nn.Module):
        def forward(self, q):
            return biased_attention(q, q, q, backend="sdpa")

    monkeypatch.setitem(biased.BACKENDS, "sdpa", None)
    q = torch.randn(1, 2, 5, 8)
    exported = torch.export.export(Module(), (q,)).module()
    assert torch.allclose(exported(q), biased_attention(q, q, q, backend="reference"))

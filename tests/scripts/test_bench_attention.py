from argparse import Namespace

import pytest
import torch

from scripts import bench_attention
from scripts.bench_attention import (
    Shape,
    attention,
    check_target,
    compare,
    least_bytes,
    measure,
    possible,
    product,
)

TINY = Shape(images=2, windows=2, heads=1, tokens=5, depth=4)
GIVEN = Namespace(
    **{"device": "cpu", "dtype": "fp32", "dropout": 0.0, "seconds": 0.001, "images": None, "rounds": 2},
    **{"shapes": ["tiny"], "forms": ["sdpa", "fused", "flex"]},
)


def test_arithmetic():
    assert product(TINY) == 2 * 4 * 25 * 4
    assert least_bytes(TINY, torch.float32, "forward") == 4 * (4 * 4 * 20 + 2 * 25)
    assert least_bytes(TINY, torch.float32, "both") == 4 * (12 * 4 * 20 + 3 * 2 * 25)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("form", ["no bias", "sdpa", "reference"])
def test_measures(form, dropout):
    given = Namespace(**vars(GIVEN) | {"dropout": dropout})
    result = measure(TINY, form, given)
    assert 0 < result["forward"] < 1
    assert 0 < result["both"] < 1
    assert result["backward"] == result["both"] - result["forward"]
    assert result["same_bits"] or (form, dropout) == ("no bias", 0.5)  # which draws anew
    assert result["backend"] in ("reference", "flash", "math")


def test_dropout_drops():
    q, k, v, bias = *torch.randn(3, 4, 1, 5, 4), torch.zeros(2, 1, 5, 5)
    for form in ("no bias", "sdpa", "reference"):
        outputs = [attention(form, TINY, Namespace(**vars(GIVEN) | {"dropout": p}))(q, k, v, bias) for p in (0.0, 0.5)]
        assert not torch.equal(*outputs)


def test_forms():
    assert possible(GIVEN) == ["no bias", "sdpa", "flex"]
    assert possible(Namespace(**vars(GIVEN) | {"device": "cuda"})) == ["no bias", "sdpa", "fused", "flex"]
    assert possible(Namespace(**vars(GIVEN) | {"dropout": 0.1})) == ["no bias", "sdpa"]


class Fake:
    """A process that gives these seconds, then nothing."""

    def __init__(self, *seconds):
        self.seconds = iter(seconds)

    def ask(self, name):
        assert name == "tiny"
        if (one := next(self.seconds, None)) is None:
            return None
        return {"forward": one, "backward": one, "both": 2 * one, "memory": 0, "same_bits": True, "backend": "math"}


def test_table(monkeypatch, capsys):
    monkeypatch.setitem(bench_attention.SHAPES, "tiny", TINY)
    plain, biased = compare("tiny", {"no bias": Fake(1.0, 2.0), "sdpa": Fake(3.0, 4.0), "flex": Fake(1.0)}, GIVEN)
    assert (plain["form"], plain["forward_ms"], plain["forward_ratio"]) == ("no bias", 1500.0, 1.0)
    assert (biased["form"], biased["forward_ms"], biased["both_ratio"]) == ("sdpa", 3500.0, 2.5)
    assert biased["both_tflops"] == round(7 * product(TINY) / 7 / 1e12, 2)
    said = capsys.readouterr().out
    assert "same bits again: True" in said
    assert "flex       it has ended or was too slow" in said


def test_target(capsys):
    row = {"shape": "ViT-B/16", "form": "fused", "tokens": 196, "depth": 64, "both_ratio": 1.2}
    check_target([row, row | {"both_ratio": 1.3}, row | {"tokens": 197}, row | {"form": "sdpa"}])
    met, missed = capsys.readouterr().out.splitlines()
    assert met == "met     ViT-B/16, both over those without a bias: 1.2 (<= 1.25)"
    assert missed.startswith("NOT MET")

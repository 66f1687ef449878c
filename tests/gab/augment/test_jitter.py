import itertools
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from timm.data.auto_augment import auto_augment_transform
from torch import Tensor
from torchvision.transforms import ColorJitter, RandomRotation

from gab.augment import jitter
from gab.augment.operations import Op, apply, plan

KEYS = torch.arange(6000)
AT = {"seed": 0, "epoch": 2}


def done(images: Tensor, layers: list) -> np.ndarray:
    for layer in layers:
        apply(images, plan(layer, images.shape[-1]))
    return images.permute(0, 2, 3, 1).numpy()


def test_three_augment_draws_as_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    [layer] = jitter.three_augment(KEYS, **AT)
    counts = Counter(layer.op.tolist())
    assert stats.chisquare([counts[op] for op in (Op.SOLARIZE, Op.COLOR, Op.BLUR)]).pvalue > 1e-3
    assert counts.total() == len(KEYS)
    assert (layer.arg[layer.op == Op.SOLARIZE] == 128).all()
    assert (layer.arg[layer.op == Op.COLOR] == 0).all()
    sigma = (layer.arg[layer.op == Op.BLUR] - 0.1) / 1.9
    assert stats.kstest(sigma, "uniform").pvalue > 1e-3


def test_three_augment_as_timm(photos: Callable[[int], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """The images of its policy, given the same choices."""
    images = photos(48).repeat(4, 1, 1, 1)
    [layer] = jitter.three_augment(torch.arange(len(images)), **AT)
    transform = auto_augment_transform("3a")
    place = {Op.SOLARIZE: 0, Op.COLOR: 1, Op.BLUR: 2}
    theirs = []
    for image, op, arg in zip(images, layer.op.tolist(), layer.arg.tolist(), strict=True):
        monkeypatch.setattr("timm.data.auto_augment.random.choice", lambda policy, op=op: policy[place[Op(op)]])
        monkeypatch.setattr("timm.data.auto_augment.random.uniform", lambda low, high, arg=arg: arg)
        theirs.append(np.asarray(transform(Image.fromarray(image.permute(1, 2, 0).numpy()))))
    difference = np.abs(done(images, [layer]).astype(int) - np.stack(theirs))
    assert {op for op in place if op in layer.op} == set(place)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-4


def test_color_jitter_draws_as_torchvision() -> None:
    """Factors uniform, and every order of the three equally often."""
    layers = jitter.color_jitter(KEYS, 0.4, **AT)
    orders = Counter(zip(*(layer.op.tolist() for layer in layers), strict=True))
    wanted = list(itertools.permutations([Op.BRIGHTNESS, Op.CONTRAST, Op.COLOR]))
    assert stats.chisquare([orders[order] for order in wanted]).pvalue > 1e-3
    assert orders.total() == sum(orders[order] for order in wanted)
    for op in wanted[0]:
        factor = torch.cat([layer.arg[layer.op == op] for layer in layers])
        assert stats.kstest((factor - 0.6) / 0.8, "uniform").pvalue > 1e-3
    assert min(layer.arg.min() for layer in jitter.color_jitter(KEYS, 1.5, **AT)) >= 0


def test_color_jitter_as_torchvision(photos: Callable[[int], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal, given the same factors and order."""
    images = photos(48)
    layers = jitter.color_jitter(torch.arange(len(images)), 0.4, **AT)
    number = {Op.BRIGHTNESS: 0, Op.CONTRAST: 1, Op.COLOR: 2}
    theirs = []
    for i, image in enumerate(images):
        factor = {int(layer.op[i]): float(layer.arg[i]) for layer in layers}
        order = [number[Op(int(layer.op[i]))] for layer in layers]
        given = order, factor[Op.BRIGHTNESS], factor[Op.CONTRAST], factor[Op.COLOR], None
        monkeypatch.setattr(ColorJitter, "get_params", staticmethod(lambda *_, given=given: given))
        theirs.append(np.asarray(ColorJitter(0.4, 0.4, 0.4)(Image.fromarray(image.permute(1, 2, 0).numpy()))))
    assert np.array_equal(done(images, layers), np.stack(theirs))


def test_rotation_as_torchvision(photos: Callable[[int], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal, given the same angles, which are uniform."""
    images = photos(48)
    [layer] = jitter.rotation(KEYS, 15.0, **AT)
    assert stats.kstest((layer.arg + 15) / 30, "uniform").pvalue > 1e-3
    layers = jitter.rotation(torch.arange(len(images)), 15.0, **AT)
    theirs = []
    for image, angle in zip(images, layers[0].arg.tolist(), strict=True):
        monkeypatch.setattr(RandomRotation, "get_params", staticmethod(lambda _, angle=angle: angle))
        theirs.append(np.asarray(RandomRotation(15)(Image.fromarray(image.permute(1, 2, 0).numpy()))))
    assert np.array_equal(done(images, layers), np.stack(theirs))


def test_other_keys_seeds_and_epochs_draw_otherwise() -> None:
    for draw in (jitter.three_augment, lambda *a, **k: jitter.color_jitter(*a, 0.4, **k)):
        first = draw(KEYS, **AT)[0]
        for change in ({"epoch": 3}, {"seed": 1}):
            assert not torch.equal(draw(KEYS, **{**AT, **change})[0].arg, first.arg)
        part = draw(KEYS[100:200], **AT)[0]
        assert torch.equal(part.op, first.op[100:200])
        assert torch.equal(part.arg, first.arg[100:200])

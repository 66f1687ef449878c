"""What is drawn, and how often, against timm's RandAugment."""

import random
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats
from timm.data import auto_augment as timm
from torch import Tensor

from gab.augment.operations import Op
from gab.augment.randaugment import OPERATIONS, arguments, draw, magnitudes
from gab.config import RandAugmentConfig

COUNT = 12_000
NAMES = dict(zip(OPERATIONS, timm._RAND_TRANSFORMS, strict=True))  # in timm's order
INCREASING = dict(zip(OPERATIONS, timm._RAND_INCREASING_TRANSFORMS, strict=True))
SETTINGS = {
    "rand-m9-mstd0.5-inc1": {},
    "rand-m6-n3-p0.8": {"layers": 3, "magnitude": 6, "magnitude_std": 0.0, "prob": 0.8, "increasing": False},
    "rand-m7-n1-mstd101-p1": {"layers": 1, "magnitude": 7, "magnitude_std": 101, "prob": 1.0, "increasing": False},
    "rand-m12-mmax15-mstd2-inc1": {"magnitude": 12, "magnitude_max": 15, "magnitude_std": 2.0},
    "rand-m9-n3-mstd0.5-tweights": {"layers": 3, "weighted": True},
}
FILL = torch.tensor([124, 116, 104]).byte()
AT = {"interpolation": "random", "fill": FILL, "seed": 0, "epoch": 3}

Drawn = list[list[tuple[str, float]]]  # for every image, its operations by timm's names and their arguments


@pytest.mark.parametrize("increasing", [False, True])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_arguments_as_timm(increasing: bool, sign: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal, at magnitudes up to 15."""
    monkeypatch.setattr(timm.random, "random", lambda: 0.7 if sign < 0 else 0.3)
    for magnitude in (0.0, 0.3, 4.999, 5.0, 8.7654321, 9.0, 10.0, 14.9):
        for op, name in (INCREASING if increasing else NAMES).items():
            level = timm.LEVEL_TO_ARG[name]
            theirs = level(magnitude, {}) if level else (0,)
            one = torch.tensor([sign]).double()
            drawn = torch.tensor([magnitude], dtype=torch.float64)
            ours = arguments(torch.tensor([op]), drawn, one, increasing)
            assert ours.item() == pytest.approx(theirs[0], rel=1e-15), (name, magnitude)


def test_magnitudes_are_normal_or_uniform() -> None:
    u = (torch.arange(2**12) / 2**12).double()
    normal = magnitudes(u, RandAugmentConfig(magnitude=9, magnitude_std=0.5, magnitude_max=99))
    torch.testing.assert_close(normal, torch.from_numpy(stats.norm.ppf(u.numpy() + 2.0**-25, 9, 0.5)))
    assert magnitudes(u, RandAugmentConfig(magnitude=9, magnitude_std=0.5)).max() == 10
    torch.testing.assert_close(magnitudes(u, RandAugmentConfig(magnitude=7, magnitude_std=101)), 7 * u)
    assert (magnitudes(u, RandAugmentConfig(magnitude=7, magnitude_std=0)) == 7).all()


def timm_draws(text: str) -> Drawn:
    random.seed(0)
    np.random.seed(0)
    transform = timm.rand_augment_transform(text, {"img_mean": (124, 116, 104)})
    done: list[tuple[str, float]] = []
    for op in transform.ops:
        op.aug_fn = lambda image, *args, name=op.name, **_: done.append((name, args[0] if args else 0)) or image
    drawn = []
    for _ in range(COUNT):
        done.clear()
        transform(None)
        drawn.append(done.copy())
    return drawn


def our_draws(config: RandAugmentConfig) -> Drawn:
    names = INCREASING if config.increasing else NAMES
    layers = draw(torch.arange(COUNT), config, **AT)
    drawn: Drawn = [[] for _ in range(COUNT)]
    for layer in layers:
        for done, op, arg in zip(drawn, layer.op.tolist(), layer.arg.tolist(), strict=True):
            if op != Op.KEEP:
                done.append((names[Op(op)], arg))
    return drawn


def same_counts(ours: Counter, theirs: Counter) -> float:
    """p of the hypothesis that both come from one distribution; rare outcomes together."""
    common = [key for key in {*ours, *theirs} if ours[key] + theirs[key] >= 20]
    table = [[counts[key] for key in common] for counts in (ours, theirs)]
    for row, counts in zip(table, (ours, theirs), strict=True):
        row.append(counts.total() - sum(row))
    columns = [column for column in zip(*table, strict=True) if sum(column)]
    return stats.chi2_contingency(list(zip(*columns, strict=True))).pvalue


@pytest.mark.parametrize("text", SETTINGS)
def test_drawn_as_by_timm(text: str) -> None:
    """How many operations, which, in which order, and how strong and which way."""
    ours, theirs = our_draws(RandAugmentConfig(**{"layers": 2, **SETTINGS[text]})), timm_draws(text)
    for what in (len, lambda done: tuple(name for name, _ in done)[:2], lambda done: done[-1][0] if done else None):
        assert same_counts(Counter(map(what, ours)), Counter(map(what, theirs))) > 1e-3
    for name in {name for done in theirs for name, _ in done}:
        own, other = (
            [arg for done in drawn for drawn_name, arg in done if drawn_name == name] for drawn in (ours, theirs)
        )
        if len(other) > 50:
            assert stats.ks_2samp(own, other).pvalue > 1e-3, name


def test_both_interpolations() -> None:
    config = RandAugmentConfig(layers=1)
    share = (draw(torch.arange(COUNT), config, **AT)[0].taps == 4).double().mean()
    assert abs(share - 0.5) < 0.02
    for name, taps in (("bilinear", 2), ("bicubic", 4)):
        assert (draw(torch.arange(99), config, **{**AT, "interpolation": name})[0].taps == taps).all()


def test_a_sample_does_not_know_its_batch() -> None:
    keys = torch.randperm(5000, generator=torch.Generator().manual_seed(0))[:96]
    config = RandAugmentConfig(layers=2, weighted=True)
    whole = draw(keys, config, **AT)
    parts = [draw(part, config, **AT) for part in keys.split([40, 8, 48])]
    for number, layer in enumerate(whole):
        for column in ("op", "arg", "taps"):
            assert torch.equal(torch.cat([getattr(part[number], column) for part in parts]), getattr(layer, column))
    for change in ({"epoch": 4}, {"seed": 1}):
        assert not torch.equal(draw(keys, config, **{**AT, **change})[0].op, whole[0].op)


def independent(columns: list[Tensor]) -> None:
    correlations = np.corrcoef(torch.stack(columns).numpy())
    assert np.abs(correlations - np.eye(len(columns))).max() < 4 / COUNT**0.5


def test_draws_do_not_depend_on_one_another() -> None:
    config = RandAugmentConfig(layers=2, prob=1.0)
    layers = draw(torch.arange(COUNT), config, **AT)
    independent([column.double() for layer in layers for column in (layer.op, layer.taps)])

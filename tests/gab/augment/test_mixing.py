import numpy as np
import pytest
import torch
from scipy import stats
from timm.data.mixup import Mixup, cutmix_bbox_and_lam
from torch.nn.functional import one_hot

from gab.augment.mixing import Mixing, draw_mixing, mirrored, mix_images, units

BOTH = {"seed": 0, "step": 3, "size": 32, "mixup": 0.2, "cutmix": 1.0, "prob": 1.0, "switch_prob": 0.5}


def test_a_group_does_not_know_its_neighbours() -> None:
    whole = draw_mixing(torch.arange(16), **BOTH)
    split = [draw_mixing(part, **BOTH) for part in torch.arange(16).split([3, 8, 5])]
    for column, parts in zip(whole, zip(*split)):
        assert torch.equal(column, torch.cat(parts))
    assert not torch.equal(whole.lam, draw_mixing(torch.arange(16), **{**BOTH, "step": 4}).lam)
    assert not torch.equal(whole.lam, draw_mixing(torch.arange(16), **{**BOTH, "seed": 1}).lam)


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0])
def test_mixup_draws_from_beta(alpha: float) -> None:
    drawn = draw_mixing(torch.arange(20_000), **{**BOTH, "mixup": alpha, "cutmix": 0.0})
    assert not drawn.cut.any()
    lam = drawn.lam.double().numpy()
    # float32 rounds what lies within 6e-8 of 1 (a U-shaped Beta has much there): compare inside, and the ends by counts
    inside = (lam > 1e-4) & (lam < 1 - 1e-4)
    beta = stats.beta(alpha, alpha)
    low, high = beta.cdf([1e-4, 1 - 1e-4])
    assert abs(inside.mean() - (high - low)) < 0.01
    assert stats.kstest((beta.cdf(lam[inside]) - low) / (high - low), "uniform").pvalue > 1e-3


def test_cutmix_weighs_by_the_visible_area() -> None:
    drawn = draw_mixing(units(0, 2000, 2, "pair"), **{**BOTH, "mixup": 0.0})
    assert drawn.cut.all()
    images = torch.cat([torch.ones(1, 1, 32, 32), torch.zeros(1, 1, 32, 32)]).repeat(1000, 1, 1, 1)
    shown = mix_images(images, drawn, group=2).mean(dim=(1, 2, 3))[::2]  # the share of the sample itself
    torch.testing.assert_close(shown, drawn.lam[::2])


def test_cutmix_boxes_as_timm_draws_them() -> None:
    """The same distribution of the weight that is left after clipping, and of where the boxes begin."""
    drawn = draw_mixing(torch.arange(4000), **{**BOTH, "mixup": 0.0})
    np.random.seed(0)
    timm = Mixup(mixup_alpha=0.0, cutmix_alpha=1.0, num_classes=2)
    reference = np.array([_timm_box(timm, 32) for _ in range(4000)])
    assert stats.ks_2samp(drawn.lam.numpy(), reference[:, 0]).pvalue > 1e-3
    for side, column in ((0, 1), (2, 2)):
        assert stats.ks_2samp(drawn.box[:, side].numpy(), reference[:, column]).pvalue > 1e-3


def _timm_box(timm: Mixup, size: int) -> tuple[float, int, int]:
    lam, _ = timm._params_per_batch()
    (top, _, left, _), lam = cutmix_bbox_and_lam((1, 3, size, size), lam, correct_lam=True)
    return lam, top, left


def test_shares_of_mixup_cutmix_and_nothing() -> None:
    drawn = draw_mixing(torch.arange(20_000), **{**BOTH, "mixup": 1.0, "prob": 0.6, "switch_prob": 0.25})
    untouched = drawn.lam == 1
    assert abs(drawn.cut.float().mean() - 0.6 * 0.25) < 0.01
    assert abs((untouched & ~drawn.cut).float().mean() - 0.4) < 0.015
    assert (drawn.box[~drawn.cut] == 0).all()


def test_who_shares_a_draw() -> None:
    for group, mode, wanted in (
        (4, "batch", [0, 0, 0, 0, 1, 1, 1, 1]),
        (4, "pair", [0, 1, 1, 0, 4, 5, 5, 4]),
        (4, "element", [0, 1, 2, 3, 4, 5, 6, 7]),
    ):
        assert units(0, 8, group, mode).tolist() == wanted
        assert units(4, 4, group, mode).tolist() == wanted[4:]


@pytest.mark.parametrize("mode", ["batch", "pair", "element"])
def test_modes_as_timm(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images and targets of timm's Mixup on one group, given the same strengths and boxes."""
    group, size = 8, 12
    drawn = draw_mixing(units(16, group, group, mode), **{**BOTH, "size": size, "prob": 0.8, "step": 5})
    images, labels = torch.randn(group, 3, size, size), torch.arange(group)
    ours = mix_images(images, drawn, group)
    timm = Mixup(0.2, 1.0, mode={"element": "elem"}.get(mode, mode), label_smoothing=0.1, num_classes=group)
    count = {"batch": 1, "pair": group // 2, "element": group}[mode]
    lam, cut = drawn.lam[:count].numpy(), drawn.cut[:count].numpy()
    boxes = iter([(box, share) for box, share, is_cut in zip(drawn.box.tolist(), lam, cut) if is_cut and share != 1])
    monkeypatch.setattr(timm, "_params_per_elem", lambda _: (lam.copy(), cut))
    monkeypatch.setattr(timm, "_params_per_batch", lambda: (float(lam[0]), cut[0]))
    monkeypatch.setattr("timm.data.mixup.cutmix_bbox_and_lam", lambda *_, **__: next(boxes))
    theirs, targets = timm(images.clone(), labels)
    torch.testing.assert_close(ours, theirs)
    own, partner = (0.1 / group + 0.9 * one_hot(which, group) for which in (labels, mirrored(labels, group)))
    share = drawn.lam[:, None]
    torch.testing.assert_close(share * own + (1 - share) * partner, targets.float())
    assert len(set(drawn.lam.tolist())) == count  # which the step was chosen for: no draw is left out or equal


def test_images_mix_with_the_mirrored_group() -> None:
    images = torch.randn(8, 3, 6, 6)
    mixing = Mixing(
        torch.tensor([0.3, 30 / 36]), torch.tensor([[0, 0, 0, 0], [1, 4, 2, 4]]), torch.tensor([False, True])
    )
    mixing = Mixing(*(column.repeat_interleave(4, 0) for column in mixing))
    mixed = mix_images(images, mixing, group=4)
    torch.testing.assert_close(mixed[1], 0.3 * images[1] + 0.7 * images[2])
    expected = images[4].clone()
    expected[:, 1:4, 2:4] = images[7][:, 1:4, 2:4]
    torch.testing.assert_close(mixed[4], expected)

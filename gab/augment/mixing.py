"""Mixup and CutMix inside groups of consecutive samples of the global batch.

A group mixes with its own mirror image, with one strength for all its samples (timm's `batch` mode, on a group). Groups
are numbered in the global batch and never split, so the result does not depend on processes or micro-batches.
Sources: Zhang et al., "mixup", ICLR 2018; Yun et al., "CutMix", ICCV 2019.
"""

from typing import NamedTuple

import torch
from scipy.special import betaincinv
from torch import Tensor

from gab.random import fold, hash_key, uniform

_KEEP, _SWITCH, _STRENGTH, _CENTRE_Y, _CENTRE_X = range(5)


class Mixing(NamedTuple):
    """What every group of a batch does, on the CPU; lam is the share of the sample itself."""

    lam: Tensor  # (G,) float32
    box: Tensor  # (G, 4) int64: top, bottom, left, right; empty for mixup
    cut: Tensor  # (G,) bool: CutMix


def draw_mixing(
    groups: Tensor, *, seed: int, step: int, size: int, mixup: float, cutmix: float, prob: float, switch_prob: float
) -> Mixing:
    """Draw strengths and boxes for `groups` (G,), numbers in the global batch of `step`, for images of `size` pixels.

    lam ~ Beta(alpha, alpha) by inversion, so one uniform number decides it. For CutMix lam is corrected to the area of
    the box as clipped by the border.
    """
    keys = fold(hash_key("mixing", seed, step), groups)
    u = torch.stack([uniform(fold(keys, draw)) for draw in range(5)])  # (5, G)
    cut = u[_SWITCH] < switch_prob if mixup > 0 and cutmix > 0 else torch.full(groups.shape, cutmix > 0)
    mixed = (u[_KEEP] < prob) & torch.tensor(mixup > 0 or cutmix > 0)

    alpha = torch.where(cut, cutmix, mixup).clamp(min=1e-3).double()
    lam = torch.where(
        mixed, torch.from_numpy(betaincinv(alpha.numpy(), alpha.numpy(), u[_STRENGTH].double().numpy())), 1.0
    )
    cut &= mixed

    half = (size * (1 - lam).sqrt()).long() // 2
    centre = (u[_CENTRE_Y:].double() * size).long()  # (2, G)
    low, high = (centre - half).clamp(0, size), (centre + half).clamp(0, size)
    box = torch.stack([low[0], high[0], low[1], high[1]], dim=1) * cut[:, None]
    area = (box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2])
    return Mixing(torch.where(cut, 1 - area / size**2, lam).float(), box, cut)


def mix_images(images: Tensor, mixing: Mixing, group: int) -> Tensor:
    """Mix `images` (B, C, S, S) in groups of `group` samples. `mixing` lies on the images' device."""
    own = images.unflatten(0, (-1, group))  # (G, group, C, S, S)
    line = torch.arange(images.shape[-1], device=images.device)
    top, bottom, left, right = mixing.box.T[:, :, None]
    rows, columns = (line >= top) & (line < bottom), (line >= left) & (line < right)  # (G, S)
    inside = rows[:, :, None] & columns[:, None, :]  # (G, S, S)
    share = torch.where(mixing.cut[:, None, None], (~inside).float(), mixing.lam[:, None, None])
    share = share[:, None, None].to(images.dtype)
    return (own * share + own.flip(1) * (1 - share)).flatten(0, 1)

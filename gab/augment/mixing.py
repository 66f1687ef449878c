"""Mixup and CutMix inside groups of consecutive samples of the global batch.

A group mixes with its own mirror image: with one strength for all its samples, one for two partners, or one for each
(timm's modes `batch`, `pair` and `elem`, on a group). Samples are numbered in the global batch and groups never split,
so the result does not depend on processes or micro-batches.
Sources: Zhang et al., "mixup", ICLR 2018; Yun et al., "CutMix", ICCV 2019.
"""

from typing import NamedTuple

import torch
from scipy.special import betaincinv
from torch import Tensor

from gab.random import fold_in, hash_key, uniform

_KEEP, _SWITCH, _STRENGTH, _CENTRE_Y, _CENTRE_X = range(5)


class Mixing(NamedTuple):
    """What every sample does: drawn on the CPU, used on the device; lam is the share of the sample itself."""

    lam: Tensor  # (B,) float32
    box: Tensor  # (B, 4) int64: top, bottom, left, right; empty for mixup
    cut: Tensor  # (B,) bool: CutMix


def units(first: int, count: int, group: int, mode: str) -> Tensor:
    """Samples with one number (B,) share a draw: `count` samples from place `first` of the global batch on.

    The number is that of the group in mode `batch`, else the place of the sample (`element`) or of the pair's first.
    """
    place = torch.arange(first, first + count)
    inside = place % group
    if mode == "batch":
        return place // group
    return place - inside + torch.minimum(inside, group - 1 - inside) if mode == "pair" else place


def draw_mixing(
    units: Tensor, *, seed: int, step: int, size: int, mixup: float, cutmix: float, prob: float, switch_prob: float
) -> Mixing:
    """Draw strengths and boxes for samples of the global batch of `step` whose numbers are `units` (B,).

    Images have `size` pixels a side.

    lam ~ Beta(alpha, alpha) by inversion, so one uniform number decides it. For CutMix lam is corrected to the area of
    the box as clipped by the border.
    """
    numbers, own = units.unique(return_inverse=True)
    keys = fold_in(hash_key("mixing", seed, step), numbers)
    u = uniform(fold_in(keys, torch.arange(5)[:, None]))  # (5, numbers)
    cut = u[_SWITCH] < switch_prob if mixup > 0 and cutmix > 0 else torch.full(keys.shape, cutmix > 0)
    mixed = (u[_KEEP] < prob) & torch.tensor(mixup > 0 or cutmix > 0)

    alpha = torch.where(cut, cutmix, mixup).clamp(min=1e-3).double()
    lam = torch.where(
        mixed, torch.from_numpy(betaincinv(alpha.numpy(), alpha.numpy(), u[_STRENGTH].double().numpy())), 1.0
    )
    cut &= mixed

    half = (size * (1 - lam).sqrt()).long() // 2
    centre = (u[_CENTRE_Y:].double() * size).long()  # (2, numbers)
    low, high = (centre - half).clamp(0, size), (centre + half).clamp(0, size)
    box = torch.stack([low[0], high[0], low[1], high[1]], dim=1) * cut[:, None]
    area = (box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2])
    lam = torch.where(cut, 1 - area / size**2, lam).float()
    return Mixing(lam[own], box[own], cut[own])


def mix_images(images: Tensor, mixing: Mixing, group: int) -> Tensor:
    """Mix `images` (B, C, S, S) in groups of `group` samples. `mixing` lies on the images' device."""
    line = torch.arange(images.shape[-1], device=images.device)
    top, bottom, left, right = mixing.box.T[:, :, None]
    rows, columns = (line >= top) & (line < bottom), (line >= left) & (line < right)  # (B, S)
    inside = rows[:, :, None] & columns[:, None, :]  # (B, S, S)
    share = torch.where(mixing.cut[:, None, None], (~inside).to(images.dtype), mixing.lam[:, None, None])
    return torch.lerp(mirrored(images, group), images, share[:, None].to(images.dtype))


def mirrored(samples: Tensor, group: int) -> Tensor:
    """Every sample's partner: `samples` (B, ...) with the order turned round in groups of `group`."""
    return samples.unflatten(0, (-1, group)).flip(1).flatten(0, 1)

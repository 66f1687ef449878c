"""Random erasing with pixel noise (Zhong et al., AAAI 2020), as a function of (seed, epoch, sample key)."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gab.augment.operations import twice_if_one
from gab.random import fold_in, hash_key, uniform

_TRIES = 10
_AREA = (0.02, 1 / 3)  # share of the image
_ASPECT = (0.3, 1 / 0.3)  # height / width, log-uniform
_RADIUS, _ANGLE = -1, -2  # streams of the noise, beside those of the box


class Boxes(NamedTuple):
    """Which samples of a batch are erased, and where."""

    rows: Tensor  # (K,) int64, places in the batch
    boxes: Tensor  # (K, 4) int64: top, bottom, left, right
    keys: Tensor  # (K,) int64, of the noise
    pixels: int  # of all boxes together


def draw_boxes(indices: Tensor, *, seed: int, epoch: int, size: int, prob: float) -> Boxes:
    """Boxes for the samples with keys `indices` (B,), whose images have `size` pixels a side; on the CPU."""
    keys = fold_in(hash_key("erasing", seed, epoch), indices)
    draws = uniform(fold_in(keys, torch.arange(1 + 4 * _TRIES)[:, None]))  # (1 + 4 tries, B)
    area, aspect, y, x = draws[1:].double().unflatten(0, (4, _TRIES))  # each (tries, B)
    area = size**2 * (_AREA[0] + (_AREA[1] - _AREA[0]) * area)
    aspect = torch.exp(math.log(_ASPECT[0]) + (math.log(_ASPECT[1]) - math.log(_ASPECT[0])) * aspect)
    height, width = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
    fits = (height < size) & (width < size)
    first = fits.int().argmax(0, keepdim=True)  # the first try that fits
    height, width, y, x = (value.gather(0, first)[0] for value in (height, width, y, x))
    top, left = (y * (size - height + 1)).long(), (x * (size - width + 1)).long()
    rows = twice_if_one(torch.nonzero((draws[0] < prob) & fits.any(0))[:, 0])
    boxes = torch.stack([top, top + height, left, left + width], dim=1)
    return Boxes(rows, boxes[rows], keys[rows], pixels=int((height * width)[rows].sum()))


def _normal(keys: Tensor, image: Tensor, element: Tensor) -> Tensor:
    """Standard normal numbers for elements (C, P), by Box and Muller. Their keys are `keys` (K,) at `image` (P,)."""
    first = 1 - uniform(fold_in(fold_in(keys, _RADIUS)[image], element))  # (0, 1]
    second = uniform(fold_in(fold_in(keys, _ANGLE)[image], element))
    return torch.sqrt(-2 * torch.log(first)) * torch.cos(2 * math.pi * second)


def erase(images: Tensor, rows: Tensor, boxes: Tensor, keys: Tensor, pixels: int) -> Tensor:
    """Fill the boxes of the given rows of normalised `images` (B, C, S, S) with noise, in place; all on one device.

    Args:
        pixels: of all boxes together. The device is not asked for it, and only these pixels are drawn.
    """
    if pixels == 0:
        return images
    channels, size = images.shape[1:3]
    top, bottom, left, right = boxes.T
    area = (bottom - top) * (right - left)
    box = torch.repeat_interleave(area, output_size=pixels)  # which box a pixel belongs to
    inside = torch.arange(pixels, device=images.device) - (area.cumsum(0) - area)[box]
    width = (right - left)[box]
    y, x = top[box] + inside // width, left[box] + inside % width
    channel = torch.arange(channels, device=images.device)[:, None]
    noise = _normal(keys, box, (channel * size + y) * size + x)  # (C, pixels)
    images[rows[box], channel, y, x] = noise.to(images.dtype)
    return images

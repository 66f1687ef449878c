"""Operations that give every grey level a new one: look-up tables (R, 1 or 3, 256) for R images, as Pillow makes them.

Where a table depends on the image, all that is counted is an integer, so it is the same in every batch.
"""

import torch
from torch import Tensor

_LEVELS = 256


def look_up(images: Tensor, tables: Tensor) -> Tensor:
    """uint8 `images` (R, 3, S, S) through `tables` uint8 (R, 1 or 3, 256)."""
    return tables.expand(-1, 3, -1).gather(2, images.flatten(2).long()).view_as(images)


def levels(tables: Tensor) -> Tensor:
    """Grey levels from numbers: within 0 to 255, fractions cut off."""
    return tables.clamp(0, _LEVELS - 1).to(torch.uint8)


def invert(arg: Tensor) -> Tensor:
    """255 - v; the argument (R,) only says for how many images."""
    return solarize(torch.zeros_like(arg))


def posterize(bits: Tensor) -> Tensor:
    """Keep the highest `bits` (R,), from 0 to 8.

    Increasing operations come down to 0 at magnitude 10. That is black, as in the versions of Pillow that the papers
    used; Pillow 13 refuses it, and timm's RandAugment ends with its error.
    """
    mask = _LEVELS - (1 << (8 - bits.long().clamp(0, 8)))
    return levels(torch.arange(_LEVELS) & mask[:, None])[:, None]


def solarize(threshold: Tensor) -> Tensor:
    """255 - v from `threshold` (R,) on."""
    value = torch.arange(_LEVELS)
    return levels(torch.where(value < threshold[:, None], value, _LEVELS - 1 - value))[:, None]


def solarize_add(addend: Tensor) -> Tensor:
    """v + `addend` (R,) below 128."""
    value = torch.arange(_LEVELS)
    return levels(torch.where(value < _LEVELS // 2, value + addend[:, None], value))[:, None]


def brightness(factor: Tensor) -> Tensor:
    """v times `factor` (R,)."""
    return levels(factor.float()[:, None] * torch.arange(_LEVELS))[:, None]


def contrast(grey: Tensor, factor: Tensor) -> Tensor:
    """Away from the mean of the image by `factor` (R,), given its greys, integers (R, S, S)."""
    count = grey[0].numel()
    mean = (2 * grey.sum((1, 2)) + count).div(2 * count, rounding_mode="floor").float()[:, None]
    value = torch.arange(_LEVELS, device=grey.device)
    return levels(mean + factor.float()[:, None] * (value - mean))[:, None]


def auto_contrast(images: Tensor) -> Tensor:
    """Stretches every channel from its darkest and lightest level to 0 and 255."""
    pixels = images.flatten(2).int()  # compiled for a CPU, the minimum of uint8 is wrong (torch 2.15)
    low, high = pixels.amin(2, keepdim=True), pixels.amax(2, keepdim=True)  # (R, 3, 1)
    low, high = low.double(), high.double()  # few numbers, and 255 must come out as 255 where Pillow's does
    scale = torch.full_like(high, 255).div((high - low).clamp(min=1))  # 255 / x would be 255 times 1 / x, rounded twice
    value = torch.arange(_LEVELS, device=images.device)
    return levels(torch.where(high > low, value * scale - low * scale, value))


def equalize(images: Tensor) -> Tensor:
    """Makes every channel use all levels equally often."""
    rows, channels = images.shape[:2]
    first = _LEVELS * torch.arange(rows * channels, device=images.device).view(rows, channels, 1)
    places = (images.flatten(2) + first).flatten()
    counts = torch.zeros(rows * channels * _LEVELS, dtype=torch.int64, device=images.device)
    counts = counts.scatter_add_(0, places, torch.ones_like(places)).view(rows, channels, _LEVELS)
    value = torch.arange(_LEVELS, device=images.device)
    last = counts.gather(2, ((counts > 0) * value).amax(2, keepdim=True))  # pixels of the lightest level
    step = (images[0, 0].numel() - last).div(_LEVELS - 1, rounding_mode="floor")
    below = counts.cumsum(2) - counts
    equal = (step.div(2, rounding_mode="floor") + below).div(step.clamp(min=1), rounding_mode="floor")
    return levels(torch.where(step > 0, equal, value))

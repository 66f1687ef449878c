"""Operations that look at other channels or at neighbours: greys, sharpness and blur, as Pillow computes them."""

import torch
from torch import Tensor


def grey(images: Tensor) -> Tensor:
    """Luma (ITU-R 601-2) of uint8 `images` (R, 3, S, S) in Pillow's fixed-point arithmetic: int32 (R, S, S)."""
    red, green, blue = images.to(torch.int32).unbind(1)
    return (19595 * red + 38470 * green + 7471 * blue + 2**15) >> 16


def blend(poor: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """From grey levels `poor` (R, 1 or 3, S, S) (factor 0) to uint8 `images` (`factor` (R,) 1) and beyond."""
    poor = poor.float()
    return (poor + factor.float()[:, None, None, None] * (images - poor)).clamp(0, 255).to(torch.uint8)


def smooth(images: Tensor) -> Tensor:
    """Means of 3 x 3 pixels, the middle one five times; the rim as it is. uint8 (R, 3, S, S)."""
    x = images.float()
    rows = x[..., :-2, :] + x[..., 1:-1, :] + x[..., 2:, :]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * x[..., 1:-1, 1:-1]
    smoothed = images.clone()
    smoothed[..., 1:-1, 1:-1] = (total / 13 + 0.5).to(torch.uint8)
    return smoothed


def box(sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of the box that blurs by a Gaussian of `sigma` (R,) pixels when applied three times, on the CPU.

    The box of fractional width of Gwosdek et al., "Theoretical foundations of Gaussian convolution by extended box
    filtering" (SSVM 2011). In Pillow's fixed point, of 2**-24: three int32 (R, 1, 1, 1), of a pixel, of its neighbours
    and of theirs; sigma at most 2.4.
    """
    variance = sigma.double() ** 2 / 3  # of one box
    whole = (((12 * variance + 1).sqrt() - 1) / 2).floor()
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    inner = torch.tensor(2.0**24).div(2 * (whole + part).float() + 1).floor().double()  # in single precision, as there
    outer = ((2**24 - (2 * whole + 1) * inner) / 2).floor()
    weights = inner, torch.where(whole > 0, inner, outer), torch.where(whole > 0, outer, 0)
    return tuple(weight.int()[:, None, None, None] for weight in weights)  # type: ignore[return-value]


def blur(images: Tensor, middle: Tensor, near: Tensor, far: Tensor) -> Tensor:
    """Blur uint8 `images` (R, 3, S, S) by three boxes of `box` along rows, then three along columns."""
    size, x = images.shape[-1], images.int()
    for dim in (3, 3, 3, 2, 2, 2):
        first, last = x.narrow(dim, 0, 1), x.narrow(dim, size - 1, 1)
        x = torch.cat([first, first, x, last, last], dim)  # the rim goes on
        a, b, c, d, e = (x.narrow(dim, start, size) for start in range(5))
        x = (middle * c).addcmul_(near, b + d).addcmul_(far, a + e).add_(2**23)
        x = x.bitwise_right_shift_(24).bitwise_and_(255)  # sums are below 2**32: the sign is a bit too
    return x.to(torch.uint8)

"""Operations that move pixels: shears, translations and rotations, resampled as Pillow does.

Pixel x, y has its centre at x + 0.5, y + 0.5 and looks up the place in the input that the operation moves there; beyond
the image it takes the fill colour, at the rim the edge's pixels go on. It is the nearest pixel's, or the weighted mean
of `taps` pixels per axis: 2 (bilinear) or 4 (bicubic, Keys' kernel with a = -1). Places are computed on the CPU, in
double precision, for rows and columns apart; the rest on the device.
"""

import torch
from torch import Tensor

_ONE = 2**16  # Pillow's fixed-point unit of places for `nearest`
_BELOW = 2**-12  # greys are cut to integers: a sum that rounding left a little below its integer must reach it


def lines(shear: Tensor, shift: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """How far every line of an image slides along itself, on the CPU: by `shear` (R,) per line and `shift` (R,) pixels.

    Returns:
        whole pixels int64, the fraction beyond them float32, and the nearest whole number int64, each (R, size).
    """
    offset = shear[:, None] * (torch.arange(size) + 0.5) + shift[:, None]
    whole = offset.floor()
    return whole.long(), (offset - whole).float(), (offset + 0.5).floor().long()


def slide(images: Tensor, whole: Tensor, fraction: Tensor, nearest: Tensor, fill: Tensor, taps: int) -> Tensor:
    """Slide the rows of uint8 `images` (R, 3, S, S) by offsets (R, S) of `lines`; `fill` (3,) comes in."""
    size = images.shape[-1]
    column, source = torch.arange(size, device=images.device), images.float()
    place = whole[:, None, :, None] + column  # (R, 1, S, S)
    total = torch.zeros_like(source)
    for tap, weight in _weights(fraction[:, None, :, None], taps):
        index = (place + tap).clamp(0, size - 1).expand_as(source)
        total.addcmul_(source.gather(3, index), weight)
    closest = nearest[:, None, :, None] + column
    return _finish(total, (closest >= 0) & (closest < size), fill[:, None, None])


def slide_down(images: Tensor, whole: Tensor, fraction: Tensor, nearest: Tensor, fill: Tensor, taps: int) -> Tensor:
    """Does what `slide` does, for columns."""
    return slide(images.mT, whole, fraction, nearest, fill, taps).mT


def turns(degrees: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where rotations by `degrees` (R,), counter-clockwise, look up their pixels, on the CPU.

    Returns:
        Four float32 (R, size). The x of a pixel's place is the first at its column plus the second at its row, the y
        the third at its column plus the fourth at its row.
    """
    angle = torch.deg2rad(degrees)[:, None]
    centred = torch.arange(size) + 0.5 - size / 2
    along, across = torch.cos(angle) * centred, torch.sin(angle) * centred
    parts = along, size / 2 - across, across, along + size / 2
    return tuple(part.float() for part in parts)  # type: ignore[return-value]


def turns_nearest(degrees: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `turns` gives, for the nearest pixel: int64 (R, size) in 2**-16 pixels, rounded as in Pillow."""
    angle = torch.deg2rad(degrees)[:, None]
    cos, sin, centre = torch.cos(angle), torch.sin(angle), size / 2
    units = _ONE * torch.stack([cos, centre + (0.5 - centre) * (cos - sin), sin, centre + (0.5 - centre) * (cos + sin)])
    cos, x, sin, y = (units + 0.5).floor().long()
    pixel = torch.arange(size)
    return cos * pixel, x - sin * pixel, sin * pixel, y + cos * pixel


def rotate(images: Tensor, x: Tensor, dx: Tensor, y: Tensor, dy: Tensor, fill: Tensor, taps: int) -> Tensor:
    """Rotate uint8 `images` (R, 3, S, S) to the places (R, S) of `turns`, or of `turns_nearest` for one tap.

    `fill` (3,) comes in.
    """
    if taps == 1:
        return _rotate_nearest(images, x, dx, y, dy, fill)
    size, source = images.shape[-1], images.flatten(2).float()
    x, y = _everywhere(x, dx), _everywhere(y, dy)
    left, top = (x - 0.5).floor(), (y - 0.5).floor()
    columns = [((left.long() + tap).clamp(0, size - 1), share) for tap, share in _weights(x - 0.5 - left, taps)]
    total = torch.zeros_like(source)
    for tap, weight in _weights(y - 0.5 - top, taps):
        row = size * (top.long() + tap).clamp(0, size - 1)
        line = torch.zeros_like(source)
        for column, share in columns:
            line.addcmul_(source.gather(2, (row + column).expand_as(source)), share)
        total.addcmul_(line, weight)
    inside = (x >= 0) & (x < size) & (y >= 0) & (y < size)
    return _finish(total, inside, fill[:, None]).view_as(images)


def _rotate_nearest(images: Tensor, x: Tensor, dx: Tensor, y: Tensor, dy: Tensor, fill: Tensor) -> Tensor:
    size, source = images.shape[-1], images.flatten(2)
    column, row = _everywhere(x, dx) // _ONE, _everywhere(y, dy) // _ONE
    inside = (column >= 0) & (column < size) & (row >= 0) & (row < size)
    index = size * row.clamp(0, size - 1) + column.clamp(0, size - 1)
    return torch.where(inside, source.gather(2, index.expand_as(source)), fill[:, None]).view_as(images)


def _everywhere(columns: Tensor, rows: Tensor) -> Tensor:
    """The sum of a part (R, S) for columns and one for rows, at every pixel: (R, 1, S * S)."""
    return (columns[:, None, :] + rows[:, :, None]).flatten(1)[:, None]


def _weights(fraction: Tensor, taps: int) -> list[tuple[int, Tensor]]:
    """Pixels counted from the one below a place, and their weights where the place is a `fraction` beyond it."""
    d = fraction
    if taps == 2:
        return [(0, 1 - d), (1, d)]
    return [(-1, d * (d * (2 - d) - 1)), (0, 1 + d * d * (d - 2)), (1, d * (1 + d * (1 - d))), (2, d * d * (d - 1))]


def _finish(total: Tensor, inside: Tensor, fill: Tensor) -> Tensor:
    """Grey levels from sums, and `fill` where there is no image."""
    return torch.where(inside, (total + _BELOW).clamp(0, 255).to(torch.uint8), fill)

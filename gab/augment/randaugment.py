"""RandAugment as timm draws it (Cubuk et al., "RandAugment", NeurIPS 2020; timm's `rand-m9-mstd0.5-inc1` and its kin).

Every image passes `layers` operations, each done with probability `prob` at a noisy magnitude. A draw is a function of
(seed, epoch, sample key, layer).
"""

import torch
from torch import Tensor

from gab.augment.operations import Layer, Op
from gab.config import RandAugmentConfig
from gab.random import fold_in, hash_key, uniform

# The operations, and timm's weights of them ("weights": its transform set of that name).
_WEIGHTS = {
    Op.AUTO_CONTRAST: 0.25,
    Op.EQUALIZE: 0.05,
    Op.INVERT: 0.05,
    Op.ROTATE: 3,
    Op.POSTERIZE: 0.05,
    Op.SOLARIZE: 0.05,
    Op.SOLARIZE_ADD: 0.05,
    Op.COLOR: 0.25,
    Op.CONTRAST: 0.05,
    Op.BRIGHTNESS: 0.05,
    Op.SHARPNESS: 0.25,
    Op.SHEAR_X: 2,
    Op.SHEAR_Y: 2,
    Op.TRANSLATE_X: 1,
    Op.TRANSLATE_Y: 1,
}
OPERATIONS = tuple(_WEIGHTS)
_CHOICE, _DONE, _MAGNITUDE, _SIGN, _TAPS = range(5)


def draw(
    keys: Tensor, config: RandAugmentConfig, *, interpolation: str, fill: Tensor, seed: int, epoch: int
) -> list[Layer]:
    """The layers for the samples `keys` (B,), on the CPU."""
    own = fold_in(hash_key("randaugment", seed, epoch), keys)
    streams = fold_in(own, torch.arange(config.layers)[:, None])  # (layers, B)
    u = uniform(fold_in(streams, torch.arange(5)[:, None, None])).double()  # (5, layers, B)
    choice = _weighted(own, config.layers) if config.weighted else (len(OPERATIONS) * u[_CHOICE]).long()
    op = torch.tensor(OPERATIONS)[choice]
    arg = arguments(op, magnitudes(u[_MAGNITUDE], config), 1 - 2 * (u[_SIGN] > 0.5).double(), config.increasing)
    op = torch.where(u[_DONE] < config.prob, op, Op.KEEP)
    return [Layer(*columns, fill) for columns in zip(op, arg, taps(u[_TAPS], interpolation), strict=True)]


def _weighted(keys: Tensor, count: int) -> Tensor:
    """`count` different operations for every key, one after another by weight: (count, B).

    The first of exponential clocks whose rates are the weights; those that are left run on (Efraimidis and Spirakis).
    """
    u = uniform(fold_in(fold_in(keys, -1), torch.arange(len(OPERATIONS))[:, None])).double()  # (15, B)
    clocks = -torch.log1p(-u) / torch.tensor(list(_WEIGHTS.values())).double()[:, None]
    return clocks.argsort(0)[:count]


def magnitudes(u: Tensor, config: RandAugmentConfig) -> Tensor:
    """Magnitudes, of 10, from uniform numbers `u` float64: normal around the configured one, or uniform up to it."""
    if config.magnitude_std > 100:
        drawn = config.magnitude * u
    else:
        drawn = config.magnitude + config.magnitude_std * torch.special.ndtri(u + 2.0**-25)  # u is a multiple of 2**-24
    return drawn.clamp(0, config.magnitude_max or 10)


def arguments(op: Tensor, magnitude: Tensor, sign: Tensor, increasing: bool) -> Tensor:
    """Arguments of operations at magnitudes (of 10), float64; `sign` -1 or 1 is for those that have a direction."""
    level = magnitude / 10
    bits, threshold, factor = (4 * level).floor(), (256 * level).floor().clamp(max=256), 0.1 + 1.8 * level
    if increasing:
        bits, threshold, factor = 4 - bits, 256 - threshold, (1 + 0.9 * sign * level).clamp(min=0.1)
    given: dict[Op, Tensor] = {
        Op.ROTATE: 30 * sign * level,
        Op.POSTERIZE: bits,
        Op.SOLARIZE: threshold,
        Op.SOLARIZE_ADD: (110 * level).floor().clamp(max=128),
        **dict.fromkeys((Op.COLOR, Op.CONTRAST, Op.BRIGHTNESS, Op.SHARPNESS), factor),
        **dict.fromkeys((Op.SHEAR_X, Op.SHEAR_Y), 0.3 * sign * level),
        **dict.fromkeys((Op.TRANSLATE_X, Op.TRANSLATE_Y), 0.45 * sign * level),
    }
    table = torch.stack([given.get(name, torch.zeros_like(level)) for name in Op])  # (operations, ...)
    return table.gather(0, op[None])[0]


def taps(u: Tensor, interpolation: str) -> Tensor:
    """Pixels that are weighed per axis, from uniform numbers: 2 for bilinear, 4 for bicubic."""
    bicubic = {"bilinear": 0.0, "bicubic": 1.0, "random": 0.5}[interpolation]
    return torch.where(u < bicubic, 4, 2)

"""3-Augment, colour jitter and rotation: operations on every image, drawn from (seed, epoch, key)."""

import torch
from torch import Tensor

from gab.augment.operations import Layer, Op
from gab.random import fold_in, hash_key, uniform

_BLACK = torch.zeros(3, dtype=torch.uint8)


def three_augment(keys: Tensor, *, seed: int, epoch: int) -> list[Layer]:
    """Solarised, grey or blurred by a Gaussian of 0.1 to 2 pixels, one of them on every image.

    Touvron, Cord and Jégou, "DeiT III: Revenge of the ViT" (ECCV 2022), section 3.
    """
    choice, strength = _draws("three_augment", keys, 2, seed=seed, epoch=epoch)
    index = (3 * choice).long()
    op = torch.tensor([Op.SOLARIZE, Op.COLOR, Op.BLUR])[index]
    arg = torch.stack([torch.full_like(strength, 128), torch.zeros_like(strength), 0.1 + 1.9 * strength])
    return [_layer(op, arg.gather(0, index[None])[0])]


def color_jitter(keys: Tensor, amount: float, *, seed: int, epoch: int) -> list[Layer]:
    """Brightness, contrast and saturation, each by a factor within 1 +- `amount` and not below 0, in random order."""
    u = _draws("color_jitter", keys, 6, seed=seed, epoch=epoch)
    low, high = max(0.0, 1 - amount), 1 + amount
    factor, order = low + (high - low) * u[:3], u[3:].argsort(0)  # (3, B)
    op = torch.tensor([Op.BRIGHTNESS, Op.CONTRAST, Op.COLOR])[order]
    return [_layer(*columns) for columns in zip(op, factor.gather(0, order), strict=True)]


def rotation(keys: Tensor, degrees: float, *, seed: int, epoch: int) -> list[Layer]:
    """Rotation by an angle within +- `degrees`: nearest pixels, and black from outside."""
    [u] = _draws("rotation", keys, 1, seed=seed, epoch=epoch)
    return [_layer(torch.full(keys.shape, Op.ROTATE), degrees * (2 * u - 1))]


def _draws(name: str, keys: Tensor, count: int, *, seed: int, epoch: int) -> Tensor:
    """Uniform numbers float64 (count, B)."""
    return uniform(fold_in(fold_in(hash_key(name, seed, epoch), keys), torch.arange(count)[:, None])).double()


def _layer(op: Tensor, arg: Tensor) -> Layer:
    return Layer(op, arg, torch.ones_like(op), _BLACK)

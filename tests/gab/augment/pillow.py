"""timm's operations by Pillow, called as timm calls them."""

from collections.abc import Callable

import numpy as np
from PIL import Image
from timm.data import auto_augment as timm
from torch import Tensor

from gab.augment.operations import Op

FILL = (124, 116, 104)
RESAMPLING = {1: Image.Resampling.NEAREST, 2: Image.Resampling.BILINEAR, 4: Image.Resampling.BICUBIC}
FACTORS = (0.1, 0.37, 0.9, 1.0, 1.13, 1.9)
SHARES = (-0.4471, -0.2031, 0.0, 0.3137, 0.4499)

# timm's function, and the arguments that are tried.
CASES: dict[Op, tuple[Callable, tuple[float, ...]]] = {
    Op.AUTO_CONTRAST: (timm.auto_contrast, (0,)),
    Op.EQUALIZE: (timm.equalize, (0,)),
    Op.INVERT: (timm.invert, (0,)),
    Op.POSTERIZE: (timm.posterize, (1, 2, 3, 4, 8)),
    Op.SOLARIZE: (timm.solarize, (0, 26, 128, 256)),
    Op.SOLARIZE_ADD: (timm.solarize_add, (0, 99, 110, 128)),
    Op.BRIGHTNESS: (timm.brightness, FACTORS),
    Op.CONTRAST: (timm.contrast, FACTORS),
    Op.COLOR: (timm.color, (0.0, *FACTORS)),
    Op.SHARPNESS: (timm.sharpness, FACTORS),
    Op.BLUR: (timm.gaussian_blur, (0.1, 0.5, 1.0, 1.41421356, 1.6, 2.0)),
    Op.ROTATE: (timm.rotate, (-30.0, -13.7, 0.0, 0.4, 27.3)),
    Op.SHEAR_X: (timm.shear_x, (-0.2987, 0.0, 0.0713, 0.2681)),
    Op.SHEAR_Y: (timm.shear_y, (-0.2987, 0.0, 0.0713, 0.2681)),
    Op.TRANSLATE_X: (timm.translate_x_rel, SHARES),
    Op.TRANSLATE_Y: (timm.translate_y_rel, SHARES),
}


def by_timm(image: Tensor, op: int, arg: float, taps: int, fill: tuple[int, ...] = FILL) -> np.ndarray:
    """uint8 (3, S, S) by Pillow: (S, S, 3), as integers."""
    if op == Op.KEEP:
        return image.permute(1, 2, 0).numpy().astype(int)
    function = CASES[Op(op)][0]
    whole = op in (Op.POSTERIZE, Op.SOLARIZE, Op.SOLARIZE_ADD)
    given = () if op in (Op.AUTO_CONTRAST, Op.EQUALIZE, Op.INVERT) else (int(arg) if whole else arg,)
    done = function(Image.fromarray(image.permute(1, 2, 0).numpy()), *given, fillcolor=fill, resample=RESAMPLING[taps])
    return np.asarray(done).astype(int)

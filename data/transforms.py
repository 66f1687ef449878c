"""The evaluation transform: resize the shorter side, cut the centre. Pixel for pixel what timm and torchvision do."""

import math

from PIL import Image

from data.errors import DataError

INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def check_transform(size: int, crop: float, interpolation: str) -> None:
    """Raise DataError for a setting that `eval_image` cannot follow."""
    if interpolation not in INTERPOLATIONS:
        known = " or ".join(INTERPOLATIONS)
        raise DataError(f"data.eval_interpolation is {interpolation!r}; set it to {known}.")
    if not 0 < crop <= 1:
        raise DataError(f"data.eval_crop is {crop}; set it above 0 and at most 1.")
    if size < 1:
        raise DataError(f"data.image_size is {size}; set it to at least 1 pixel.")


def eval_image(image: Image.Image, size: int, crop: float, interpolation: str) -> Image.Image:
    """Resize the shorter side to floor(size / crop) and cut the central `size` x `size` square.

    timm's `create_transform(is_training=False, crop_mode="center")`.
    """
    width, height = image.size
    shorter = math.floor(size / crop)
    if width <= height:
        new_size = (shorter, int(shorter * height / width))
    else:
        new_size = (int(shorter * width / height), shorter)
    image = image.resize(new_size, INTERPOLATIONS[interpolation])
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return image.crop((left, top, left + size, top + size))

"""The evaluation transform against timm's own, and the stored size of training images."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform

from data.stored import limited
from data.transforms import eval_image

SIDE = st.integers(5, 400)


@settings(max_examples=60, deadline=None)
@given(
    width=SIDE,
    height=SIDE,
    size=st.sampled_from([32, 64, 224]),
    crop=st.sampled_from([0.875, 0.9, 0.95, 1.0]),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
)
def test_eval_image_is_timms_pixel_for_pixel(
    width: int, height: int, size: int, crop: float, interpolation: str
) -> None:
    pixels = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    timms = create_transform(size, crop_pct=crop, interpolation=interpolation, is_training=False, normalize=False)
    ours = np.asarray(eval_image(image, size, crop, interpolation))
    assert np.array_equal(ours.transpose(2, 0, 1), timms(image).numpy())


@pytest.mark.parametrize(
    ("size", "expected"),
    [((500, 375), (500, 375)), ((501, 501), (500, 500)), ((640, 427), (500, 334)), ((3, 6000), (1, 500))],
)
def test_limited_bounds_the_longer_side(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert limited(Image.new("RGB", size), 500).size == expected

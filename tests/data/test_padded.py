"""Crops of CIFAR recipes: a window of the image with a black border."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torchvision.transforms import functional

from data.config import CropConfig, DataConfig
from data.errors import DataError
from data.order import BICUBIC, FLIP, HEIGHT, LEFT, TOP, WIDTH, check_crop, crop_side, digest, draw_crops
from data.resample import cut_window

MANY = 20_000


def windows(n: int, height: int = 32, width: int = 32, size: int = 32, seed: int = 0, **crop) -> np.ndarray:
    crop = CropConfig(kind="padded", size=size, **crop)
    return draw_crops(crop, seed, 0, np.arange(n), np.full(n, height), np.full(n, width))


def test_every_window_of_the_padded_image_is_as_likely():
    crops = windows(MANY)
    assert (crops[:, [HEIGHT, WIDTH]] == 32).all()
    assert (crops[:, BICUBIC] == 0).all()
    for column in (TOP, LEFT):
        values, counts = np.unique(crops[:, column], return_counts=True)
        assert values.tolist() == list(range(-4, 5))
        assert stats.chisquare(counts).pvalue > 1e-3
    both = np.corrcoef(crops[:, [TOP, LEFT, FLIP]].T) - np.eye(3)
    assert np.abs(both).max() < 5 / np.sqrt(MANY)
    assert abs(crops[:, FLIP].mean() - 0.5) < 5 * 0.5 / np.sqrt(MANY)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 40), st.integers(0, 6))
def test_windows_stay_in_the_padded_image(height, width, size, padding):
    """As torchvision's RandomCrop, which refuses an image that is too small; here it is in the middle."""
    crops = windows(50, height, width, size, padding=padding)
    for start, length in ((crops[:, TOP], height), (crops[:, LEFT], width)):
        if length + 2 * padding < size:
            assert (start == (length - size) // 2).all()
        else:
            assert (start >= -padding).all()
            assert (start + size <= length + padding).all()


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("top", "left", "size"), [(0, 0, 20), (-4, 3, 32), (5, -2, 24), (-9, -9, 48), (30, 40, 8), (-60, 2, 16), (26, 3, 8)]
)
def test_a_window_is_torchvisions(top, left, size, flip):
    image = np.random.default_rng(0).integers(0, 256, (28, 36, 3), dtype=np.uint8)
    out = np.full((size, size, 3), 99, np.uint8)
    cut_window(image, top, left, flip, out)
    padded = functional.pad(torch.from_numpy(image).permute(2, 0, 1), [64])
    expected = functional.crop(padded, top + 64, left + 64, size, size)
    expected = functional.hflip(expected) if flip else expected
    assert np.array_equal(out, expected.permute(1, 2, 0).numpy())


def test_the_digest_tells_windows_apart():
    crops = windows(1)
    for column in (TOP, LEFT, FLIP):
        other = crops.copy()
        other[0, column] -= 1
        assert digest(np.arange(1), crops) != digest(np.arange(1), other)
    assert windows(5).tolist()[0] == windows(1).tolist()[0]


def test_side_of_crops_and_impossible_settings():
    assert crop_side(DataConfig(name="x", root="", image_size=32)) == 32
    assert crop_side(DataConfig(name="x", root="", image_size=32, crop=CropConfig(size=40))) == 40
    with pytest.raises(DataError, match=r"data\.crop\.size=24 is below data\.image_size=32"):
        crop_side(DataConfig(name="x", root="", image_size=32, crop=CropConfig(size=24)))
    with pytest.raises(DataError, match="data.crop.kind is 'square'; set it to resized or padded"):
        check_crop(CropConfig(kind="square"))
    with pytest.raises(DataError, match="data.crop.padding is -1"):
        check_crop(CropConfig(kind="padded", padding=-1))

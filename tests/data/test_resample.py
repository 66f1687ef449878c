import runpy
from pathlib import Path

import numpy as np
import PIL
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from data.resample import columns_first, kept, resize_crop

KNOWS_BOTH_ORDERS = int(PIL.__version__.split(".")[0]) >= 13


def ours(image: np.ndarray, box: tuple[int, int, int, int], size: int, bicubic: bool, flip: bool) -> np.ndarray:
    out = np.full((size, size, 3), 77, np.uint8)
    resize_crop(image, *box, bicubic, flip, out)
    return out


def pillow(image: np.ndarray, box: tuple[int, int, int, int], size: int, bicubic: bool, flip: bool) -> np.ndarray:
    top, left, height, width = box
    filter = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR
    crop = Image.fromarray(image).crop((left, top, left + width, top + height)).resize((size, size), filter)
    return np.asarray(crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else crop)


@st.composite
def crops(draw):
    height, width = draw(st.integers(1, 300)), draw(st.integers(1, 300))
    h, w = draw(st.integers(1, height)), draw(st.integers(1, width))
    box = draw(st.integers(0, height - h)), draw(st.integers(0, width - w)), h, w
    return (height, width), box, draw(st.sampled_from([1, 7, 32, 64, 160, 224]))


@settings(max_examples=300, deadline=None)
@given(crops(), st.booleans(), st.booleans(), st.integers(0, 9), st.booleans())
def test_every_bit_is_pillow_s(crop, bicubic, flip, seed, saturated):
    shape, box, size = crop
    assume(KNOWS_BOTH_ORDERS or not columns_first(box[2], box[3], size))
    image = np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)
    if saturated:  # overshoots of the cubic must be clipped after each pass
        image = np.where(image < 128, 0, 255).astype(np.uint8)
    assert np.array_equal(ours(image, box, size, bicubic, flip), pillow(image, box, size, bicubic, flip))


@pytest.mark.parametrize("share", [0.15, 0.5, 1.0])
@pytest.mark.parametrize("bicubic", [True, False])
def test_photographs(photos, share, bicubic):
    """Whatever the order of Pillow's passes: far below 0.3 grey levels on average."""
    for photo in photos.values():
        image = np.array(photo)
        height, width = (int(side * share) for side in image.shape[:2])
        box = (image.shape[0] - height, 0, height, width)
        difference = ours(image, box, 224, bicubic, False).astype(int) - pillow(image, box, 224, bicubic, False)
        assert np.abs(difference).mean() <= 0.01


def test_same_size_is_a_copy(photos):
    image = np.array(photos["china"])
    assert np.array_equal(ours(image, (10, 20, 64, 64), 64, True, False), image[10:74, 20:84])


@pytest.mark.parametrize("place", [True, False])
def test_what_is_compiled_is_kept_for_the_next_start(place: bool, tmp_path: Path, monkeypatch) -> None:
    """And works all the same where nothing can be written."""
    script = tmp_path / "double.py"
    script.write_text("def double(x, out):\n    out[:] = 2 * x\n")
    if not place:
        monkeypatch.setattr("numba.core.caching.CacheImpl._locator_classes", [])
    out = np.empty(3)
    kept(runpy.run_path(str(script))["double"])(np.arange(3.0), out)
    assert out.tolist() == [0, 2, 4]
    assert bool(list(tmp_path.rglob("*.nbc"))) == place

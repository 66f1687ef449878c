import io
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.cut import cut, is_indexed
from data.restart import add_restarts, piece_length

KINDS = {
    "4:2:0": {"subsampling": "4:2:0"},
    "4:2:2": {"subsampling": "4:2:2", "optimize": True},
    "4:4:4": {"subsampling": "4:4:4", "quality": 97},
    "restarts": {"subsampling": "4:2:0", "restart_marker_blocks": 5},
    "exif": {"exif": b"Exif\0\0" + bytes(300), "comment": b"a comment", "optimize": True},
    "grey": {},
}


def jpeg(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    (image.convert("L") if kind == "grey" else image).save(buffer, "JPEG", **({"quality": 90} | KINDS[kind]))
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def part(data: bytes, shape: tuple[int, int], box: tuple[int, int, int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """What a cut shows, and where it begins."""
    out = np.empty(len(data), np.uint8)
    size, y, x, height, width = cut(np.frombuffer(data, np.uint8), *shape, *box, out)
    shown = pixels(out[:size].tobytes())
    assert shown.shape == (height, width, 3)
    return shown, (y, x)


@pytest.fixture(scope="module")
def stored(photos) -> dict[tuple[str, tuple[int, int]], tuple[bytes, np.ndarray]]:
    """Every kind at some sizes, 37 being a prime number of units: with restart markers, and the original's pixels."""
    found = {}
    for kind in KINDS:
        for width, height in ((300, 211), (37 * 16, 90), (9, 5), (64, 400)):
            original = jpeg(photos["china"].crop((20, 10, 20 + width, 10 + height)), kind)
            changed = add_restarts(original)
            assert changed is not None
            found[kind, (height, width)] = changed, pixels(original)
    return found


def test_restarts_change_no_pixel(stored):
    for data, original in stored.values():
        assert is_indexed(np.frombuffer(data, np.uint8))
        assert np.array_equal(pixels(data), original)


def test_restarts_cost_few_bytes(photos):
    original = jpeg(photos["flower"], "4:2:0")
    assert len(add_restarts(original)) < 1.05 * len(original)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_cut_shows_every_pixel_of_its_box_as_the_whole_does(stored, data):
    (_, (height, width)), (file, original) = data.draw(st.sampled_from(list(stored.items())))
    box_height, box_width = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    top, left = data.draw(st.integers(0, height - box_height)), data.draw(st.integers(0, width - box_width))
    shown, (y, x) = part(file, (height, width), (top, left, box_height, box_width))
    inside = shown[top - y : top - y + box_height, left - x : left - x + box_width]
    assert np.array_equal(inside, original[top : top + box_height, left : left + box_width])


def test_a_cut_is_small(stored):
    file, _ = stored["4:2:0", (211, 300)]
    shown, begin = part(file, (211, 300), (100, 120, 20, 20))
    assert shown.shape[0] <= 48
    assert shown.shape[1] <= 160
    assert begin[0] >= 80


def test_a_window_beyond_the_image(stored):
    file, original = stored["4:4:4", (211, 300)]
    shown, begin = part(file, (211, 300), (-4, 290, 300, 32))
    assert begin[0] == 0
    assert np.array_equal(shown[:, 290 - begin[1] :], original[:, 290:])


@pytest.mark.parametrize("change", [{"progressive": True}, {"quality": 90, "format": "PNG"}])
def test_other_files_stay_as_they_are(photos, change):
    buffer = io.BytesIO()
    photos["china"].crop((0, 0, 80, 60)).save(buffer, **({"format": "JPEG"} | change))
    assert add_restarts(buffer.getvalue()) is None
    out = np.empty(len(buffer.getvalue()), np.uint8)
    assert cut(np.frombuffer(buffer.getvalue(), np.uint8), 60, 80, 0, 0, 9, 9, out) == (0, 0, 0, 60, 80)


def test_damaged_files_raise_nothing(photos):
    """Whether any of these becomes a file does not matter: the writer compares pixels."""
    original = jpeg(photos["china"].crop((0, 0, 80, 60)), "4:2:0")
    rng = np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(original[: rng.integers(2, len(original))] if rng.random() < 0.5 else original)
        for at in rng.integers(2, len(damaged), 3):
            damaged[at] = rng.integers(256)
        add_restarts(bytes(damaged))


def test_a_file_that_ends_too_early_is_not_cut(stored):
    file, _ = stored["4:2:0", (211, 300)]
    short = np.frombuffer(file[: len(file) // 2], np.uint8)
    assert cut(short, 211, 300, 150, 0, 61, 300, np.empty(len(file), np.uint8))[0] == 0
    begun = np.frombuffer(file[:40], np.uint8)
    assert cut(begun, 211, 300, 0, 0, 61, 300, np.empty(100, np.uint8))[0] == 0


def test_the_index_is_a_segment_that_others_skip(stored):
    file, _ = stored["4:2:0", (211, 300)]
    marker, length, magic = struct.unpack_from(">HH4s", file, 2)
    assert (marker, magic) == (0xFFEF, b"GABR")
    assert file[4 + length] == 0xFF  # the next segment


@pytest.mark.parametrize(("columns", "unit", "length"), [(40, 16, 4), (37, 16, 1), (25, 16, 5), (80, 8, 8), (1, 16, 1)])
def test_pieces_divide_a_row(columns, unit, length):
    assert piece_length(columns, unit) == length

"""How an image is stored for training: pixels limited in size; the original JPEG wherever nothing had to change."""

import io
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from PIL import Image, JpegImagePlugin

from data.config import WriteConfig
from data.readers.base import Source, UnreadableImage, decode
from data.restart import add_restarts

# Luma sampling factors that TurboJPEG names: 4:4:4, 4:2:2, 4:4:0, 4:2:0 and 4:1:1
SAMPLING = {(1, 1), (2, 1), (1, 2), (2, 2), (4, 1)}

MAX_ORIGINAL = 1 << 23  # bytes; larger ones hold something else than an image of this size


@dataclass(frozen=True)
class StoredImage:
    """An image as it lies in a .beton file: a JPEG file, or raw pixels (height, width, 3)."""

    data: bytes
    width: int
    height: int
    jpeg: bool
    original: bool = False  # the coefficients of the source's file, unchanged


def stored_image(source: Source, i: int, max_size: int) -> Image.Image:
    """Image `i` as RGB pixels at its stored size. The torch loader uses it too, so that crop boxes agree."""
    return limited(source.image(i), max_size)


def limited(image: Image.Image, max_size: int) -> Image.Image:
    """`image` itself if its longer side is within `max_size` pixels, else resized to it (bicubic, antialiased)."""
    scale = max_size / max(image.size)
    if scale >= 1:
        return image
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def encode_train(source: Source, i: int, write: WriteConfig) -> StoredImage:
    """Image `i` as `write` stores it for training; raises UnreadableImage if it cannot be decoded.

    The original is kept where it is a JPEG that every decoder reads alike (see `is_plain_jpeg`) and small enough; it is
    decoded all the same, so that no damaged file enters. Others are encoded again, 4:2:0. Either gets restart markers,
    so that it can be decoded in part, unless its pixels would not stay the same.
    """
    original = source.encoded(i) if write.mode == "jpg" else None
    image = source.image(i) if original is None else decode(original, source.names[i])
    if original is not None and max(image.size) <= write.max_size and is_plain_jpeg(original):
        return StoredImage(restarted(original, image), image.width, image.height, jpeg=True, original=True)
    image = limited(image, write.max_size)
    if write.mode == "raw":
        return encode_raw(image)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=write.quality, subsampling="4:2:0")
    jpeg = buffer.getvalue()
    return StoredImage(restarted(jpeg, decode(jpeg, source.names[i])), image.width, image.height, jpeg=True)


def restarted(jpeg: bytes, image: Image.Image) -> bytes:
    """`jpeg`, which shows `image`, with restart markers; as it is where that is not possible without a change."""
    changed = add_restarts(jpeg)
    with suppress(UnreadableImage):
        if changed is not None and np.array_equal(np.asarray(decode(changed, "")), np.asarray(image)):
            return changed
    return jpeg


def encode_raw(image: Image.Image) -> StoredImage:
    """The pixels of an RGB image."""
    return StoredImage(np.asarray(image).tobytes(), image.width, image.height, jpeg=False)


def is_plain_jpeg(data: bytes) -> bool:
    """Whether `data` is a JPEG file of 8-bit YCbCr or grey, with usual chroma subsampling and of usual length.

    FFCV decodes by TurboJPEG and ignores its errors, so nothing may reach it that it could refuse: CMYK, and files of
    another format that are named .JPEG (both occur in ImageNet), RGB without a colour transform, odd sampling.
    """
    if len(data) > MAX_ORIGINAL:
        return False
    with Image.open(io.BytesIO(data)) as image:
        if image.format != "JPEG" or not isinstance(image, JpegImagePlugin.JpegImageFile) or image.bits != 8:
            return False
        if image.mode == "L":
            return True
        components = [component for component, *_ in image.layer]
        sampling = [(horizontal, vertical) for _, horizontal, vertical, _ in image.layer]
        is_rgb = image.info.get("adobe_transform") == 0 or components == list(b"RGB")
        return image.mode == "RGB" and not is_rgb and sampling[0] in SAMPLING and sampling[1:] == [(1, 1), (1, 1)]

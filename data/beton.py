"""The .beton format (FFCV's, version 2) with an RGB image and an integer label per sample: header and writer.

Layout: header, field descriptors, one metadata record per sample, then pages with the images' data, then the
allocation table. Written here rather than by FFCV's own writer because that one encodes every JPEG again, hangs when
an image raises, and lays pages out in whatever order its processes finish. The file reads with stock FFCV.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from data.errors import DataError
from data.stored import StoredImage

VERSION = 2
MIN_PAGE_SIZE = 1 << 23  # 8 MiB, FFCV's default; a sample must fit in one
MAX_PAGE_SIZE = 1 << 31
RGB_IMAGE, INTEGER = 2, 1  # FFCV's field types
JPEG, RAW = 0, 1  # FFCV's image modes

HEADER = np.dtype(
    [("version", "<u2"), ("num_fields", "<u2"), ("page_size", "<u4"), ("num_samples", "<u8"), ("alloc_ptr", "<u8")],
    align=True,
)
FIELD = np.dtype([("type_id", "<u1"), ("name", "<u1", 16), ("arguments", "<u1", (1024,))], align=True)
IMAGE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
SAMPLE = np.dtype([("image", IMAGE), ("label", "<i8")], align=True)
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])

PROBES = 128  # images that `probe` looks into
PROBE_SIZE = 1 << 12  # bytes of each


@dataclass(frozen=True)
class Header:
    """What the loaders need to know before they open a file."""

    count: int  # samples
    page_size: int  # bytes


def read_header(path: Path) -> Header | None:
    """The header of `path`; None if it is not a .beton file of this format, or has no data. Raises OSError."""
    raw = np.fromfile(path, dtype=HEADER, count=1)
    if not len(raw) or raw["version"][0] != VERSION or raw["num_fields"][0] != 2 or raw["alloc_ptr"][0] == 0:
        return None
    return Header(int(raw["num_samples"][0]), int(raw["page_size"][0]))


def read_samples(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The record of every sample, `SAMPLE` (n,), and the bytes that its data take, int64 (n,). Raises OSError."""
    with path.open("rb") as file:
        header = np.fromfile(file, HEADER, 1)
        np.fromfile(file, FIELD, 2)
        samples = np.fromfile(file, SAMPLE, int(header["num_samples"][0]))
        file.seek(int(header["alloc_ptr"][0]))
        sizes = np.fromfile(file, ALLOCATION, len(samples))["size"].astype(np.int64)
    return samples, sizes


def probe(path: Path) -> str:
    """64 bits, hexadecimal, that tell one .beton file from another without reading all of it.

    They cover the size of the file, the record of every sample (its label, its extent, and where its data lie, so the
    length of every JPEG), and the first 4 KiB of 128 images that are spread evenly. Of changes that keep every record,
    as in raw files, one of a single image is likely missed and one of 5 % of the images in 1 of 700 cases: that a file
    is what its sidecar says, only the checksum proves, which takes minutes for 100 GB. A copy has the probe of its
    original, whatever its times. Raises OSError.
    """
    with path.open("rb") as file:
        header = np.fromfile(file, HEADER, 1)
        fields = np.fromfile(file, FIELD, 2)
        samples = np.fromfile(file, SAMPLE, int(header["num_samples"][0]))
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.sha256(b"".join(part.tobytes() for part in (header, fields, samples)))
        digest.update(str(size).encode())
        chosen = np.unique(np.linspace(0, len(samples) - 1, PROBES).astype(int))
        for position in samples["image"]["data_ptr"][chosen].tolist():
            digest.update(os.pread(file.fileno(), PROBE_SIZE, min(position, size)))
    return digest.hexdigest()[:16]


def page_size(largest: int) -> int:
    """The page size in bytes, a power of two, for samples of up to `largest` bytes (as far as FFCV allows)."""
    return min(MAX_PAGE_SIZE, max(MIN_PAGE_SIZE, 1 << (largest - 1).bit_length()))


class BetonWriter:
    """Writes samples one after another, in order, to an empty binary file; complete only after leaving `with`.

    Bytes depend on the samples alone. `capacity` is the largest number of samples that may come, `page_size` (a power
    of two) the largest size of one.
    """

    def __init__(self, file: BinaryIO, capacity: int, page_size: int):
        self.file = file
        self.page_size = page_size
        self.samples = np.zeros(capacity, SAMPLE)
        self.allocations = np.zeros(capacity, ALLOCATION)
        self.count = 0
        head = HEADER.itemsize + 2 * FIELD.itemsize + self.samples.nbytes
        self.position = -(-head // page_size) * page_size

    def add(self, image: StoredImage, label: int) -> None:
        """Append a sample; raises DataError if it does not fit in a page."""
        size = len(image.data)
        if size > self.page_size:
            raise DataError(
                f"An image of {image.width} x {image.height} pixels takes {size:,} bytes, a page of the file has "
                f"{self.page_size:,}; lower data.write.max_size."
            )
        left = -self.position % self.page_size  # in a page that has been begun
        if size > left:
            self.position += left
        self.file.seek(self.position)
        self.file.write(image.data)
        mode = JPEG if image.jpeg else RAW
        self.samples[self.count] = ((mode, image.width, image.height, self.position), label)
        self.allocations[self.count] = (self.count, self.position, size)
        self.position += size
        self.count += 1

    def __enter__(self) -> "BetonWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()

    def _finish(self) -> None:
        end = self.position + -self.position % self.page_size  # the last page is whole: FFCV may read it as one
        self.file.seek(end)
        self.file.write(self.allocations[: self.count].tobytes())
        header = np.zeros(1, HEADER)
        header[0] = (VERSION, 2, self.page_size, self.count, end)
        self.file.seek(0)
        for part in (header, _fields(), self.samples[: self.count]):
            self.file.write(part.tobytes())
        self.file.flush()
        os.fsync(self.file.fileno())


def _fields() -> np.ndarray:
    """The descriptors of the fields `image` and `label`."""
    fields = np.zeros(2, FIELD)
    for field, (type_id, name) in zip(fields, ((RGB_IMAGE, b"image"), (INTEGER, b"label")), strict=True):
        field["type_id"] = type_id
        field["name"][: len(name)] = np.frombuffer(name, "<u1")
    return fields

"""Decoding JPEG on a GPU: for machines with few cores per GPU.

The same file, order, boxes and flips as through FFCV. The bytes that a box depends on go to the device, which decodes,
cuts, resizes and mirrors them. Pixels differ a little from the other loaders' (docs/loaders.md says how much): torch
resizes in one step of 32-bit floats where Pillow rounds and clips to 8 bits between rows and columns, and NVIDIA's
decoder has arithmetic of its own.

A batch is made by a fixed number of calls, but for two for each image, a view and a resize: torch resizes images of one
size at a time.
"""

import mmap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numba import njit
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.io import ImageReadMode, decode_jpeg

from data.beton import JPEG, read_samples
from data.config import DataConfig
from data.cut import cut
from data.decoded import Decoded
from data.errors import DataError
from data.files import Sidecar, image_names
from data.memory import copy_bytes
from data.order import BICUBIC, FLIP, HEIGHT, LEFT, TOP, WIDTH, crop_side, draw_crops

AHEAD = 2  # batches that are made before they are asked for
BYTES, FIRST_ROW, FIRST_COLUMN, ROWS, COLUMNS = range(5)  # of a part, see `collect`


def current_gpu() -> torch.device:
    """The GPU that this process computes on."""
    return torch.device("cuda", torch.cuda.current_device())


class GpuTrain:
    """Training images of a .beton file, on `device`. `batch_size` is this process's."""

    def __init__(self, path: Path, sidecar: Sidecar, data: DataConfig, batch_size: int, device: torch.device):
        self.classes, self.num_samples = sidecar.classes, sidecar.count
        self.path, self.batch_size, self.device = path, batch_size, device
        self.side = crop_side(data)
        self.crop = replace(data.crop, size=self.side)
        self.samples, self.sizes = read_samples(path)
        self.jpeg = bool((self.samples["image"]["mode"] == JPEG).all())  # else pixels: a file holds one of the two
        with path.open("rb") as file:
            self.bytes = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
        self.labels = torch.from_numpy(self.samples["label"].astype(np.int64))
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._start()

    def decode(self, seed: int, epoch: int, keys: np.ndarray) -> Iterator[Decoded]:
        batches = [keys[start : start + self.batch_size] for start in range(0, len(keys), self.batch_size)]
        waiting = [self.thread.submit(self._batch, seed, epoch, batch) for batch in batches[:AHEAD]]
        try:
            for number in range(len(batches)):
                decoded = waiting.pop(0).result()
                if number + AHEAD < len(batches):
                    waiting.append(self.thread.submit(self._batch, seed, epoch, batches[number + AHEAD]))
                if self.stream is not None:  # memory that the other stream took may be given back when this one is done
                    decoded.images.record_stream(torch.cuda.current_stream(self.device))
                yield decoded
        finally:
            for future in waiting:
                future.cancel()

    def rate(self) -> float:
        """Measured on a batch of the first images, while the GPU does nothing else: training takes its share."""
        keys = np.arange(min(self.batch_size, self.num_samples))
        for _ in range(2):  # the first time, memory is taken and the decoder made
            started = time.perf_counter()
            self.thread.submit(self._batch, 0, 0, keys).result()
        return len(keys) / (time.perf_counter() - started)

    def close(self) -> None:
        self.thread.shutdown(cancel_futures=True)
        self._start()

    def describe(self) -> str:
        size = self.path.stat().st_size
        return f"gpu: {self.path.name}, {self.num_samples:,} images, {size / 1e9:.2f} GB, decoded on {self.device}"

    def _start(self) -> None:
        """A thread, which runs once it is needed."""
        self.thread = ThreadPoolExecutor(1, initializer=self._enter)

    def _enter(self) -> None:
        """What the thread does first: it would else take memory of the first GPU, whatever this process computes on."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)

    def _batch(self, seed: int, epoch: int, keys: np.ndarray) -> Decoded:
        indices = keys % self.num_samples
        stored = self.samples["image"][indices]
        crops = draw_crops(self.crop, seed, epoch, keys, stored["height"], stored["width"])
        with torch.cuda.stream(self.stream):  # does nothing without one
            data, parts = self._collected(indices, crops)
            pixels = self._decoded(data, parts[:, BYTES], indices) if self.jpeg else data.to(self.device)
            make = self._windows if self.crop.kind == "padded" else self._resized
            images = make(pixels, parts, crops)
        if self.stream is not None:
            # Not only for the consumer: torchvision decodes on a stream of its own, and into memory of this one that
            # is free as far as this one knows, so nothing may be under way here when the next batch is decoded.
            self.stream.synchronize()
        return Decoded(images.permute(0, 3, 1, 2), self.labels[indices], keys, crops)

    def _collected(self, indices: np.ndarray, crops: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """What a batch's boxes depend on, one image after another, uint8 on the CPU, and its parts, see `collect`."""
        stored, sizes = self.samples["image"][indices], self.sizes[indices]
        room = sizes.sum() if self.jpeg else 3 * (crops[:, HEIGHT].astype(np.int64) * crops[:, WIDTH]).sum()
        data = torch.empty(int(room), dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        starts, heights, widths = (stored[name].astype(np.int64) for name in ("data_ptr", "height", "width"))
        parts = np.empty((len(indices), 5), np.int64)
        end = collect(self.bytes, self.jpeg, sizes, starts, heights, widths, crops, data.numpy(), parts)
        return data[:end], parts

    def _decoded(self, data: Tensor, sizes: np.ndarray, indices: np.ndarray) -> Tensor:
        """Pixels of the JPEG files in `data`, on the device, one image after another: uint8 (3, rows, columns) each."""
        jpegs = list(data.split(sizes.tolist()))
        try:
            decoded = decode_jpeg(jpegs, ImageReadMode.RGB, self.device)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise DataError(
                f"The image {self._damaged(jpegs, indices)} in {self.path} cannot be decoded on {self.device} "
                f"({error}); write the file again (--force)."
            ) from error
        return torch.cat([image.flatten() for image in decoded])

    def _damaged(self, jpegs: list[Tensor], indices: np.ndarray) -> str:
        """The name of the first image that cannot be decoded by itself."""
        names = image_names(self.path)
        for jpeg, index in zip(jpegs, indices, strict=True):
            try:
                decode_jpeg(jpeg, ImageReadMode.RGB, self.device)
            except RuntimeError:
                return names[index]
        return f"{names[indices[0]]} or one of the {len(indices) - 1} after it"

    def _resized(self, pixels: Tensor, parts: np.ndarray, crops: np.ndarray) -> Tensor:
        """The boxes, resized and mirrored: uint8 (B, S, S, 3)."""
        pixels, size = pixels.float(), (self.side, self.side)
        images = []
        for first, strides, crop in zip(*self._layout(parts, crops), crops.tolist(), strict=True):
            box = pixels.as_strided((1, 3, crop[HEIGHT], crop[WIDTH]), (1, *strides), first)
            mode = "bicubic" if crop[BICUBIC] else "bilinear"
            images.append(interpolate(box, size, mode=mode, antialias=True))
        whole = torch.cat(images).round_().clamp_(0, 255).to(torch.uint8)
        flip = torch.from_numpy(crops[:, FLIP] == 1).to(self.device)[:, None, None, None]
        return torch.where(flip, whole.flip(3), whole).permute(0, 2, 3, 1).contiguous()

    def _windows(self, pixels: Tensor, parts: np.ndarray, crops: np.ndarray) -> Tensor:
        """The windows, mirrored, and black beyond the image: uint8 (B, S, S, 3)."""
        first, strides = self._layout(parts, crops)
        place = crops[:, [TOP, LEFT]] - parts[:, [FIRST_ROW, FIRST_COLUMN]]  # of the window's first pixel
        table = np.column_stack([first, strides, place, parts[:, [ROWS, COLUMNS]], crops[:, FLIP]])
        first, channel, row, column, top, left, rows, columns, flip = (
            torch.from_numpy(table).to(self.device).T[:, :, None]
        )
        line = torch.arange(self.side, device=self.device)
        across = torch.where(flip == 1, self.side - 1 - line, line)  # (B, S)
        inside = ((top + line >= 0) & (top + line < rows))[:, :, None]
        inside = inside & ((left + across >= 0) & (left + across < columns))[:, None]  # (B, S, S)
        source = (first + row * line)[:, :, None] + (column * across)[:, None]
        windows = torch.empty(len(parts), self.side, self.side, 3, dtype=torch.uint8, device=self.device)
        for number in range(3):
            windows[..., number] = pixels[(source + number * channel[:, :, None]) * inside] * inside
        return windows

    def _layout(self, parts: np.ndarray, crops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the first pixel of every box lies among those of the batch, (B,), and strides of its channels, rows and
        columns, (B, 3): decoded images come by channels, stored ones by pixels."""
        rows, columns = parts[:, ROWS], parts[:, COLUMNS]
        begin = np.cumsum(3 * rows * columns) - 3 * rows * columns
        one = np.ones_like(rows)
        strides = np.column_stack([rows * columns, columns, one] if self.jpeg else [one, 3 * columns, 3 * one])
        place = crops[:, [TOP, LEFT]] - parts[:, [FIRST_ROW, FIRST_COLUMN]]
        return begin + (place * strides[:, 1:]).sum(1), strides


@njit(error_model="numpy", nogil=True)
def collect(stored, jpeg, sizes, starts, heights, widths, crops, out, parts):
    """Write to `out`, one after another, what the boxes of a batch depend on: JPEG files, or pixels; returns its end.

    Args:
        stored: the .beton file, in which images of `heights` by `widths` pixels take `sizes` bytes from `starts` on.
        parts: receives, for each, the bytes written, the first row and column that they show, and how many of both.
    """
    end = 0
    for n in range(len(sizes)):
        image, height, width = stored[starts[n] : starts[n] + sizes[n]], heights[n], widths[n]
        top, left, box_height, box_width = crops[n, TOP], crops[n, LEFT], crops[n, HEIGHT], crops[n, WIDTH]
        if jpeg:
            size, y, x, rows, columns = cut(image, height, width, top, left, box_height, box_width, out[end:])
            if size == 0:  # it cannot be cut
                size = sizes[n]
                copy_bytes(image, 0, size, out, end)
        else:
            y, x = max(top, 0), max(left, 0)
            rows, columns = min(top + box_height, height) - y, min(left + box_width, width) - x
            for row in range(rows):
                copy_bytes(image, 3 * ((y + row) * width + x), 3 * columns, out, end + 3 * row * columns)
            size = 3 * rows * columns
        parts[n, BYTES], parts[n, FIRST_ROW], parts[n, FIRST_COLUMN] = size, y, x
        parts[n, ROWS], parts[n, COLUMNS] = rows, columns
        end += size
    return end

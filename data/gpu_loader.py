"""Decoding JPEG on a GPU: for machines with few cores per GPU.

The same file, order, boxes and flips as through FFCV. The bytes that a box depends on go to the device, which decodes,
cuts, resizes and mirrors them. Pixels differ a little from the other loaders': torch resizes in one step of 32-bit
floats where Pillow rounds and clips to 8 bits between rows and columns, which makes 0.16 grey levels on average
(measured with the CPU's decoder, photos of 640 px to 224), and NVIDIA's decoder has arithmetic of its own.
"""

import mmap
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad
from torchvision.io import ImageReadMode, decode_jpeg

from data.beton import JPEG, read_samples
from data.config import DataConfig
from data.cut import cut
from data.decoded import Decoded
from data.errors import DataError
from data.files import Sidecar, image_names
from data.order import BICUBIC, FLIP, HEIGHT, LEFT, TOP, WIDTH, crop_side, draw_crops

AHEAD = 2  # batches that are made before they are asked for


def current_gpu() -> torch.device:
    """The GPU that this process computes on."""
    return torch.device("cuda", torch.cuda.current_device())


class GpuTrain:
    """Training images of a .beton file, on `device`. `batch_size` is this process's."""

    rate = None  # of a decoder that has not been measured

    def __init__(self, path: Path, sidecar: Sidecar, data: DataConfig, batch_size: int, device: torch.device):
        self.classes, self.num_samples = sidecar.classes, sidecar.count
        self.path, self.batch_size, self.device = path, batch_size, device
        self.side = crop_side(data)
        self.crop = replace(data.crop, size=self.side)
        self.samples, self.sizes = read_samples(path)
        with path.open("rb") as file:
            self.bytes = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
        self.labels = torch.from_numpy(self.samples["label"].astype(np.int64))
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.thread = ThreadPoolExecutor(1)

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

    def close(self) -> None:
        self.thread.shutdown(cancel_futures=True)
        self.thread = ThreadPoolExecutor(1)  # which starts no thread before it is needed

    def describe(self) -> str:
        size = self.path.stat().st_size
        return f"gpu: {self.path.name}, {self.num_samples:,} images, {size / 1e9:.2f} GB, decoded on {self.device}"

    def _batch(self, seed: int, epoch: int, keys: np.ndarray) -> Decoded:
        indices = keys % self.num_samples
        stored = self.samples["image"][indices]
        crops = draw_crops(self.crop, seed, epoch, keys, stored["height"], stored["width"])
        with torch.cuda.stream(self.stream):  # does nothing without one
            images = torch.stack(self._images(indices, crops))
        if self.stream is not None:
            self.stream.synchronize()
        return Decoded(images.permute(0, 3, 1, 2), self.labels[indices], keys, crops)

    def _images(self, indices: np.ndarray, crops: np.ndarray) -> list[Tensor]:
        """The crops of a batch, uint8 (S, S, 3)."""
        parts = [self._part(index, crop) for index, crop in zip(indices, crops, strict=True)]
        jpegs = [part for part, _ in parts if part.ndim == 1]
        decoded = iter(self._decode(jpegs, indices) if jpegs else [])
        images = []
        for (part, box), crop in zip(parts, crops, strict=True):
            pixels = next(decoded) if part.ndim == 1 else part.to(self.device, non_blocking=True).permute(2, 0, 1)
            images.append(self._cropped(pixels, box, crop))
        return images

    def _part(self, index: int, crop: np.ndarray) -> tuple[Tensor, tuple[int, int, int, int]]:
        """What must be decoded of an image, a JPEG file (n,) or pixels (h, w, 3), and where the box lies in it."""
        image = self.samples["image"][index]
        at, height, width = int(image["data_ptr"]), int(image["height"]), int(image["width"])
        top, left, box_height, box_width = (int(crop[column]) for column in (TOP, LEFT, HEIGHT, WIDTH))
        stored = self.bytes[at : at + int(self.sizes[index])]
        if image["mode"] != JPEG:
            y, x = max(top, 0), max(left, 0)
            part = stored.reshape(height, width, 3)[y : top + box_height, x : left + box_width].copy()
        else:
            buffer = np.empty(len(stored), np.uint8)
            size, y, x, _, _ = cut(stored, height, width, top, left, box_height, box_width, buffer)
            part = buffer[:size] if size else stored.copy()
        return torch.from_numpy(part), (top - y, left - x, box_height, box_width)

    def _decode(self, jpegs: list[Tensor], indices: np.ndarray) -> list[Tensor]:
        """Pixels on the device, uint8 (3, h, w) each; raises DataError, with the name, for a damaged file."""
        with warnings.catch_warnings(action="ignore"):  # torchvision names a successor, which has no such decoder yet
            try:
                return decode_jpeg(jpegs, ImageReadMode.RGB, self.device)
            except RuntimeError as error:
                names = image_names(self.path)
                listed = ", ".join(names[i] for i in indices[:3])
                raise DataError(
                    f"A batch with {listed} ... in {self.path} cannot be decoded on {self.device} ({error}); write the "
                    "file again (--force), or set data.loader=ffcv, which names the image."
                ) from error

    def _cropped(self, pixels: Tensor, box: tuple[int, int, int, int], crop: np.ndarray) -> Tensor:
        """The box (top, left, height, width) of `pixels`, uint8 (3, h, w), resized and mirrored: (S, S, 3)."""
        top, left, height, width = box
        if self.crop.kind == "padded":
            bottom, right = top + height - pixels.shape[1], left + width - pixels.shape[2]
            image = pad(pixels, (-left, right, -top, bottom))  # negative: cut
        else:
            image = pixels[:, top : top + height, left : left + width]
            mode = "bicubic" if crop[BICUBIC] else "bilinear"
            image = interpolate(image[None].float(), (self.side, self.side), mode=mode, antialias=True)[0]
            image = image.round().clamp(0, 255).to(torch.uint8)
        return (image.flip(2) if crop[FLIP] else image).permute(1, 2, 0)

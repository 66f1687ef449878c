"""Decoding through FFCV: its file format, memory map and compiled pipeline, with a decoder and a thread of our own.

FFCV gives a decoder the sample's index and nothing else at run time, so the crops of an epoch lie in a table whose
address is compiled in. What the decoder did is written to a second table, from which digests are made.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from queue import Empty, Full, Queue
from threading import Lock
from typing import Any

import numba
import numpy as np
import torch
from ffcv.fields.rgb_image import IMAGE_MODES, SimpleRGBImageDecoder
from ffcv.loader import Loader
from ffcv.loader.epoch_iterator import EpochIterator
from ffcv.memory_managers import OSCacheManager
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.compiler import Compiler
from ffcv.transforms import ToTensor
from ffcv.utils import cast_int_to_byte_ptr

from data import turbojpeg
from data.config import DataConfig
from data.cut import cut
from data.decoded import NO_CROPS, Decoded
from data.errors import DataError
from data.files import Sidecar, image_names
from data.order import BICUBIC, FLIP, HEIGHT, LEFT, TOP, WIDTH, crop_side, draw_crops
from data.resample import cut_window, resize_crop

Prepare = Callable[[np.ndarray], None]  # take the sample keys of a batch
Finish = Callable[[np.ndarray], Any]
AHEAD = 2  # batches that wait for the consumer
# Seconds of one core for an image and for each of its stored pixels: the line through the rates of
# results/bench_loader.csv at 26 and 269 thousand pixels (a Xeon of 2023).
PER_IMAGE, PER_JPEG_PIXEL, PER_RAW_PIXEL = 1.6e-4, 5.65e-9, 1.5e-9
POLL = 0.2  # seconds between two looks at whether the other side still lives
LAUNCH = Lock()  # numba's plainest threading layer ends the process when two threads start parallel code at once


def compile_reader(manager: OSCacheManager) -> Callable:
    """FFCV's reader of the bytes at an address of the memory map, without its signature.

    That one marks numba's own type of byte arrays as read-only, for the whole process: code that is compiled later,
    ours or not, may then not write to such arrays any more.
    """

    def read(address, state):
        mapped, starts, sizes = state
        return mapped[address : address + sizes[np.searchsorted(starts, address)]]

    return Compiler.compile(read)


OSCacheManager.compile_reader = compile_reader


class CropDecoder(SimpleRGBImageDecoder):  # FFCV takes no other for images
    """Decodes images by their sample keys, and cuts, resizes and mirrors the n-th of a batch as row n of `crops` says.

    `used` receives (top, left, height, width, flip) as they were applied; height 0 says that the JPEG is damaged.
    """

    def __init__(self, size: int, padded: bool, num_samples: int, batch_size: int):
        super().__init__()
        self.size, self.padded, self.num_samples = size, padded, num_samples
        self.crops = np.zeros((batch_size, 6), np.int32)  # never reallocated: compiled code holds the address
        self.used = np.zeros((batch_size, 5), np.int32)

    def declare_state_and_memory(self, previous_state):
        shape = (self.size, self.size, 3)
        dtype = np.dtype(np.uint8)
        return replace(previous_state, jit_mode=True, shape=shape, dtype=dtype), AllocationQuery(shape, dtype)

    def generate_code(self) -> Callable:
        parallel_range, workers = Compiler.get_iterator(), Compiler.num_threads
        read, jpeg = self.memory_read, IMAGE_MODES["jpg"]
        crops_address, used_address = self.crops.ctypes.data, self.used.ctypes.data
        crops_bytes, used_bytes = self.crops.nbytes, self.used.nbytes
        num_samples, padded = self.num_samples, self.padded
        new_decoder, free_decoder = turbojpeg.new_decoder, turbojpeg.free_decoder
        decode_jpeg = turbojpeg.decode

        def decode(keys, out, metadata, storage):
            crops = numba.carray(cast_int_to_byte_ptr(crops_address), (crops_bytes,)).view(np.int32).reshape(-1, 6)
            used = numba.carray(cast_int_to_byte_ptr(used_address), (used_bytes,)).view(np.int32).reshape(-1, 5)
            for worker in parallel_range(workers):  # scratch memory belongs to a thread, not to a sample
                part, pixels, decoder = np.empty(0, np.uint8), np.empty(0, np.uint8), new_decoder()
                for n in range(worker, len(keys), workers):
                    meta, crop = metadata[keys[n] % num_samples], crops[n]
                    stored = read(meta["data_ptr"], storage)
                    height, width, good = np.int64(meta["height"]), np.int64(meta["width"]), True
                    top, left, box_height, box_width = crop[TOP], crop[LEFT], crop[HEIGHT], crop[WIDTH]
                    if meta["mode"] == jpeg:
                        if len(part) < len(stored):
                            part = np.empty(len(stored), np.uint8)
                        size, y, x, height, width = cut(stored, height, width, top, left, box_height, box_width, part)
                        if len(pixels) < 3 * height * width:
                            pixels = np.empty(3 * height * width, np.uint8)
                        good = decode_jpeg(decoder, part[:size] if size else stored, height, width, pixels)
                        stored = pixels[: 3 * height * width]
                        top, left = top - y, left - x
                    image = stored.reshape(height, width, 3)
                    if padded:
                        cut_window(image, top, left, crop[FLIP] == 1, out[n])
                    else:
                        resize_crop(
                            image, top, left, box_height, box_width, crop[BICUBIC] == 1, crop[FLIP] == 1, out[n]
                        )
                    used[n, TOP], used[n, LEFT], used[n, WIDTH] = crop[TOP], crop[LEFT], box_width
                    used[n, HEIGHT] = box_height if good else 0
                    used[n, FLIP] = crop[FLIP]
                free_decoder(decoder)
            return out[: len(keys)]

        decode.is_parallel = True  # type: ignore[attr-defined]
        return decode


class Epoch(EpochIterator):
    """FFCV's loader thread over batches of sample indices, with the traps taken out.

    It hands out copies, where FFCV's own reuses its memory under the consumer; an error reaches the consumer, who
    would wait for ever; it stops at once when asked; and it leaves torch's number of threads alone.
    """

    def __init__(self, loader: Loader, indices: np.ndarray, pin: bool, prepare: Prepare, finish: Finish):
        """`prepare` and `finish` are called, in the thread, with the indices of each batch before and after decoding.

        What `finish` returns goes with the batch.
        """
        self.prepare, self.finish = prepare, finish
        self.done: Queue = Queue(AHEAD)
        self.device = torch.cuda.current_device() if pin else None
        super().__init__(loader, indices)  # starts the thread

    def run(self) -> None:
        try:
            numba.set_num_threads(self.loader.num_workers)
            if self.device is not None:
                torch.cuda.set_device(self.device)  # pinning memory opens a context on the thread's device
            memory = self.memory_allocations["operation"]
            (node,) = (node for node, slots in memory.items() if slots is not None)
            shape = memory[node].shape[2:]
            for number, indices in enumerate(self.iter_ixes):
                images = torch.empty((len(indices), *shape), dtype=torch.uint8, pin_memory=self.device is not None)
                memory[node] = [images.numpy()]  # instead of FFCV's slots, which are used again
                self.prepare(indices)
                with LAUNCH:
                    self.run_pipeline(number, indices, 0, None)
                if not self._hand_over((images.permute(0, 3, 1, 2), indices, self.finish(indices))):
                    return
            self._hand_over(None)
        except BaseException as error:
            self._hand_over(error)

    def batches(self) -> Iterator[tuple[torch.Tensor, np.ndarray, Any]]:
        """Images uint8 (b, 3, S, S), sample indices, and what `finish` gave; raises what the thread raised."""
        while True:
            try:
                item = self.done.get(timeout=POLL)
            except Empty:
                if self.is_alive() or not self.done.empty():
                    continue
                raise RuntimeError("The thread that loads images has died; its error is above.") from None
            if item is None:
                return
            if isinstance(item, DataError):
                raise item
            if isinstance(item, BaseException):
                raise RuntimeError("The thread that loads images has failed.") from item
            yield item

    def stop(self) -> None:
        """End the thread; returns when it has ended, after at most the batch in its hands."""
        self.terminate_event.set()
        self.join()
        self.close()

    def _hand_over(self, item: Any) -> bool:
        """Put `item` where the consumer takes it; False if asked to stop meanwhile."""
        while not self.terminate_event.is_set():
            try:
                self.done.put(item, timeout=POLL)
                return True
            except Full:
                continue
        return False


class BetonFile:
    """A .beton file whose images `decoder` decodes; compiled once, at the first batch.

    Always mapped into memory, which all processes of a node share, and which the system drops pages of when short of
    memory: FFCV's other cache keeps what a random order has touched, once per process, so it needs more memory still.
    """

    def __init__(self, path: Path, decoder: SimpleRGBImageDecoder, batch_size: int, workers: int, pin: bool):
        self.path, self.pin = path, pin
        self.workers = max(1, min(workers, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
        self.loader = Loader(
            str(path),
            batch_size=batch_size,
            num_workers=self.workers,
            os_cache=True,
            batches_ahead=0,  # each batch is copied out before the next is decoded
            pipelines={"image": [decoder, ToTensor()], "label": None},
        )
        self.sizes = self.loader.reader.metadata["f0"]
        self.labels = torch.from_numpy(self.loader.reader.metadata["f1"].astype(np.int64))
        self.epoch: Epoch | None = None

    def decode(self, indices: np.ndarray, prepare: Prepare, finish: Finish) -> Iterator[tuple]:
        """Batches of `indices` in order, see `Epoch`. Leaving the iterator early ends its thread."""
        self.close()
        if not len(indices):
            return
        self.epoch = epoch = Epoch(self.loader, indices, self.pin, prepare, finish)
        try:
            yield from epoch.batches()
        finally:
            epoch.stop()
            if self.epoch is epoch:
                self.epoch = None  # with its memory

    def close(self) -> None:
        if self.epoch is not None:
            self.epoch.stop()
            self.epoch = None

    def describe(self) -> str:
        size, memory = self.path.stat().st_size, usable_memory()
        fit = "fits into" if size < 0.8 * memory else "DOES NOT FIT into"
        return (
            f"ffcv: {self.path.name}, {len(self.labels):,} images, {size / 1e9:.2f} GB, memory-mapped, "
            f"{fit} {memory / 1e9:.0f} GB of memory; threads: {self.workers}"
        )


def usable_memory(root: Path = Path("/")) -> int:
    """Bytes of the machine's memory, or of this job's share where its cgroup (version 2) or one above limits it."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    groups, own = root / "sys/fs/cgroup", root / "proc/self/cgroup"
    lines = own.read_text().splitlines() if own.is_file() else []
    paths = [line.removeprefix("0::/") for line in lines if line.startswith("0::/")]
    folder = groups.joinpath(*paths)
    limits = (above / "memory.max" for above in (folder, *folder.parents) if above.is_relative_to(groups))
    texts = [limit.read_text().strip() for limit in limits if limit.is_file()]
    return min([machine, *(int(text) for text in texts if text.isdigit())])


class BetonTrain:
    """Training images of a .beton file, cropped by `data.order`. `batch_size` is this process's."""

    def __init__(
        self, path: Path, sidecar: Sidecar, data: DataConfig, batch_size: int, workers: int, pin: bool
    ) -> None:
        self.classes, self.num_samples = sidecar.classes, sidecar.count
        side = crop_side(data)
        self.crop = replace(data.crop, size=side)
        self.decoder = CropDecoder(side, self.crop.kind == "padded", sidecar.count, batch_size)
        self.file = BetonFile(path, self.decoder, batch_size, workers, pin)

    def decode(self, seed: int, epoch: int, keys: np.ndarray) -> Iterator[Decoded]:
        def draw(batch: np.ndarray) -> None:
            sizes = self.file.sizes[batch % self.num_samples]
            crops = draw_crops(self.crop, seed, epoch, batch, sizes["height"], sizes["width"])
            self.decoder.crops[: len(batch)] = crops

        for images, batch, used in self.file.decode(keys, draw, self._take_used):
            yield Decoded(images, self.file.labels[batch % self.num_samples], batch, used)

    def rate(self) -> float:
        """Expected images per second, by the average size of the images; other processors are faster or slower."""
        sizes = self.file.sizes
        pixels = sizes["height"].astype(np.int64) * sizes["width"]
        per_pixel = np.where(sizes["mode"] == IMAGE_MODES["jpg"], PER_JPEG_PIXEL, PER_RAW_PIXEL)
        return self.file.workers / (PER_IMAGE + float((per_pixel * pixels).mean()))

    def close(self) -> None:
        self.file.close()

    def describe(self) -> str:
        return self.file.describe()

    def _take_used(self, keys: np.ndarray) -> np.ndarray:
        """The crops that the decoder applied to the batch `keys`, cleared so that none can be read twice."""
        used = self.decoder.used[: len(keys)].copy()
        self.decoder.used[:] = 0
        damaged = keys[used[:, HEIGHT] == 0]
        if len(damaged):
            name = image_names(self.file.path)[damaged[0] % self.num_samples]
            raise DataError(f"The image {name} in {self.file.path} is damaged; write the file again (--force).")
        return used


class BetonEval:
    """Evaluation images of a .beton file that was written after the evaluation transform."""

    def __init__(self, path: Path, sidecar: Sidecar, batch_size: int, workers: int, pin: bool):
        self.classes, self.names = sidecar.classes, image_names(path)
        self.file = BetonFile(path, SimpleRGBImageDecoder(), batch_size, workers, pin)

    def decode(self, indices: np.ndarray) -> Iterator[Decoded]:
        for images, batch, _ in self.file.decode(indices, lambda _: None, lambda _: None):
            yield Decoded(images, self.file.labels[batch], batch, NO_CROPS)

    def close(self) -> None:
        self.file.close()

    def describe(self) -> str:
        return self.file.describe()

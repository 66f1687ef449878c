"""Decoding by Pillow in torch's DataLoader workers: no system packages, and the same crops as through FFCV."""

import multiprocessing
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Semaphore
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data._utils.signal_handling import _remove_worker_pids

from data.config import DataConfig
from data.decoded import NO_CROPS, Decoded
from data.errors import DataError
from data.order import crop_side, draw_crops
from data.readers.base import Source
from data.resample import cut_window, resize_crop
from data.stored import stored_image
from data.transforms import eval_image

STARTS, PATIENCE = 3, 20.0  # times that workers are started, and seconds in which one of them begins
GRACE = 10.0  # seconds in which all of them end by themselves
CHUNK = 32  # images that are decoded before their crops are drawn, which costs as much for one as for many
Request = tuple[int, int, np.ndarray]  # seed, epoch, sample keys of a batch


class TrainDataset(Dataset):
    """Whole batches of training images; an item is asked for by a request, so that workers need no state."""

    def __init__(self, source: Source, data: DataConfig):
        self.source, self.data = source, data
        self.side = crop_side(data)
        self.crop = replace(data.crop, size=self.side)

    def __getitem__(self, request: Request) -> Decoded | DataError:
        seed, epoch, keys = request
        indices = keys % len(self.source)
        pixels = torch.empty(len(keys), self.side, self.side, 3, dtype=torch.uint8)
        crops = np.empty((len(keys), 6), np.int32)
        for start in range(0, len(keys), CHUNK):
            part = slice(start, start + CHUNK)
            try:
                images = [np.array(stored_image(self.source, i, self.data.write.max_size)) for i in indices[part]]
            except DataError as error:
                return error  # raised by a worker, it would arrive as a traceback
            heights, widths = zip(*(image.shape[:2] for image in images), strict=True)
            crops[part] = draw_crops(self.crop, seed, epoch, keys[part], heights, widths)
            for image, crop, out in zip(images, crops[part].tolist(), pixels[part].numpy(), strict=True):
                top, left, height, width, flip, bicubic = crop
                if self.crop.kind == "padded":
                    cut_window(image, top, left, bool(flip), out)
                else:
                    resize_crop(image, top, left, height, width, bool(bicubic), bool(flip), out)
        return Decoded(pixels.permute(0, 3, 1, 2), torch.from_numpy(self.source.labels[indices]), keys, crops)


class EvalDataset(Dataset):
    """Whole batches of images after the evaluation transform."""

    def __init__(self, source: Source, data: DataConfig):
        self.source, self.data = source, data

    def __getitem__(self, request: Request) -> Decoded | DataError:
        data, indices = self.data, request[2]
        pixels = torch.empty(len(indices), data.image_size, data.image_size, 3, dtype=torch.uint8)
        for n, i in enumerate(indices):
            try:
                image = self.source.image(i)
            except DataError as error:
                return error
            square = eval_image(image, data.image_size, data.eval_crop, data.eval_interpolation)
            pixels[n] = torch.from_numpy(np.array(square))
        labels = torch.from_numpy(self.source.labels[indices])
        return Decoded(pixels.permute(0, 3, 1, 2), labels, indices, NO_CROPS)


def compile_resize() -> None:
    """Have the routines compiled."""
    image, out = np.zeros((1, 1, 3), np.uint8), np.empty((1, 1, 3), np.uint8)
    resize_crop(image, 0, 0, 1, 1, True, False, out)
    cut_window(image, 0, 0, False, out)


def as_it_is(answer: Any) -> Any:
    """An answer is a batch already: nothing to collate."""
    return answer


def begin(begun: Semaphore, worker: int) -> None:
    """What a worker does first. It ignores what its parent decides about: Ctrl-C goes to every process of the terminal,
    SLURM's signals to every one of the job."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    begun.release()


def kill(workers: list[BaseProcess]) -> None:
    """End workers that hang: they are deaf to softer signals, and this process would wait for them at its end."""
    for worker in workers:
        worker.kill()


class Requests(Sampler):
    """The requests of an epoch, exchanged between epochs while the workers stay."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def __iter__(self) -> Iterator[Request]:
        return iter(self.requests)

    def __len__(self) -> int:
        return len(self.requests)


class Workers:
    """Persistent worker processes that answer requests to `dataset`, in order."""

    def __init__(self, dataset: TrainDataset | EvalDataset, batch_size: int, workers: int, pin: bool):
        self.batch_size, self.workers = batch_size, workers
        self.num_samples = len(dataset.source)
        self.requests = Requests()
        fork = multiprocessing.get_context("fork")  # a process of ours would spawn, and compile anew
        self.begun = fork.Semaphore(0)
        self.loader = DataLoader(
            dataset,
            batch_size=None,
            sampler=self.requests,
            collate_fn=as_it_is,
            num_workers=workers,
            multiprocessing_context=fork if workers else None,
            persistent_workers=workers > 0,
            pin_memory=pin,
            worker_init_fn=partial(begin, self.begun),
        )

    def decode(self, seed: int, epoch: int, indices: np.ndarray) -> Iterator[Decoded]:
        if self.workers and self.loader._iterator is None:
            self._start()
        starts = range(0, len(indices), self.batch_size)
        self.requests.requests = [(seed, epoch, indices[start : start + self.batch_size]) for start in starts]
        if not self.requests.requests:
            return
        try:
            for answer in self.loader:
                if isinstance(answer, DataError):
                    raise answer
                yield answer
        except (EOFError, ConnectionError) as error:  # its pipe may tell first
            self.close()
            raise RuntimeError("A DataLoader worker has died; was it short of memory?") from error
        except Exception:
            self.close()  # a dead worker would raise again, wherever the program is then
            raise

    def _start(self) -> None:
        """Fork the workers, and see that all of them live.

        In Python 3.11 a forked process hangs for ever if another thread of its parent's held the lock of the list of
        threads at that moment: it then waits for that lock before it runs a line. All start again then.
        """
        self.requests.requests = []
        for _ in range(STARTS):
            iter(self.loader)
            if all(self.begun.acquire(timeout=PATIENCE) for _ in range(self.workers)):
                return
            self.close()
            while self.begun.acquire(block=False):
                pass
        raise RuntimeError(f"the workers of the torch loader did not begin in {STARTS} times {PATIENCE} s")

    def close(self) -> None:
        """End the workers; they start again when asked for more."""
        iterator: Any = self.loader._iterator
        self.loader._iterator = None
        if iterator is None:
            return
        if iterator._worker_pids_set:
            _remove_worker_pids(id(iterator))  # from here on, the end of one is no error
            iterator._worker_pids_set = False
        late = threading.Timer(GRACE, kill, (iterator._workers,))
        late.start()
        try:
            iterator._shutdown_workers()
        finally:
            late.cancel()
            late.join()
            kill(iterator._workers)
            for worker in iterator._workers:
                worker.join(GRACE)

    def describe(self) -> str:
        return f"torch: {self.num_samples:,} original images decoded by Pillow; worker processes: {self.workers}"


class SourceTrain:
    """Training images of a reader, cropped by `data.order`. `batch_size` is this process's."""

    def __init__(self, source: Source, data: DataConfig, batch_size: int, workers: int, pin: bool):
        self.classes, self.num_samples = source.classes, len(source)
        self.dataset = TrainDataset(source, data)
        if workers:
            compile_resize()  # once, here, and not in every worker
        self.loader = Workers(self.dataset, batch_size, workers, pin)
        self.decode, self.close, self.describe = self.loader.decode, self.loader.close, self.loader.describe

    def rate(self) -> float:
        """Measured on some images, on one core while the others rest: readers differ too much for a constant."""
        keys = np.arange(min(CHUNK, self.num_samples))
        started = time.perf_counter()
        self.dataset[0, 0, keys]
        return max(self.loader.workers, 1) * len(keys) / (time.perf_counter() - started)


class SourceEval:
    """Images of a reader after the evaluation transform, by Pillow."""

    def __init__(self, source: Source, data: DataConfig, batch_size: int, workers: int, pin: bool):
        self.classes, self.names = source.classes, source.names
        self.loader = Workers(EvalDataset(source, data), batch_size, workers, pin)
        self.close, self.describe = self.loader.close, self.loader.describe

    def decode(self, indices: np.ndarray) -> Iterator[Decoded]:
        return self.loader.decode(0, 0, indices)

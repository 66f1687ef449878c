"""Bring batches to the device, and what is drawn for them, while it computes on the one before."""

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch

from gab.transfer import to_device


@cache
def copy_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream for copies to `device`: one, since memory that was taken on a stream is used again on it alone."""
    return torch.cuda.Stream(device)


class Prefetcher:
    """Iterate over pairs of a batch and what is drawn for it, both on the device.

    A thread draws and, on CUDA, starts the copies, on a stream of their own, beside the step that the host launches for
    the batch before. `waited` is the time in seconds that the consumer has spent waiting for the loader and the thread.

    Args:
        batches: named tuples; `images` and `labels` move to the device.
        draw: makes tuples and lists, with tensors of the CPU in them, of a batch and its number (from 0).
    """

    def __init__(self, batches: Iterable[Any], device: torch.device, draw: Callable[[Any, int], Any]):
        self.batches, self.device, self.draw, self.waited = batches, device, draw, 0.0

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        started = time.perf_counter()
        reader = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None
        with ThreadPoolExecutor(1, "prefetch", self._enter) as thread:
            ahead = (thread.submit(self._prepare, *item, reader) for item in enumerate(self.batches))
            following = next(ahead, None)
            while following is not None:
                current, following = following, next(ahead, None)
                batch, drawn, copied = current.result()
                if reader is not None:
                    reader.wait_event(copied)  # the device waits, the host does not
                self.waited += time.perf_counter() - started
                yield batch, drawn
                started = time.perf_counter()

    def _enter(self) -> None:
        """What the thread does first: it would else take memory of the first GPU, whatever this process computes on."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)

    def _prepare(self, number: int, batch: Any, reader: torch.cuda.Stream | None) -> tuple[Any, Any, Any]:
        """The pair, and when its copies are done."""
        if reader is None:
            return batch, self.draw(batch, number), None
        with torch.cuda.stream(copy_stream(self.device)):
            images = batch.images.to(self.device, non_blocking=True)  # on their way while the rest is drawn
            images.record_stream(reader)
            labels, drawn = to_device((batch.labels, self.draw(batch, number)), self.device, reader)
            copied = torch.cuda.Event()
            copied.record()
        return batch._replace(images=images, labels=labels), drawn, copied

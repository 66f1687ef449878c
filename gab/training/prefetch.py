"""Bring batches to the device while it computes on the one before."""

import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch


class Prefetcher:
    """Iterate over batches (named tuples with `images` and `labels`), these two on the device.

    On CUDA the copy runs on a stream of its own, beside the step that the host has launched before. `waited` is the
    time in seconds that the consumer has spent waiting for the loader.
    """

    def __init__(self, batches: Iterable[Any], device: torch.device):
        self.batches, self.device, self.waited = batches, device, 0.0
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __iter__(self) -> Iterator[Any]:
        source = iter(self.batches)
        while True:
            started = time.perf_counter()
            batch = next(source, None)
            self.waited += time.perf_counter() - started
            if batch is None:
                return
            yield self._move(batch, self.stream) if self.stream else batch

    def _move(self, batch: Any, stream: torch.cuda.Stream) -> Any:
        current = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(stream):
            images = batch.images.to(self.device, non_blocking=True)
            labels = batch.labels.to(self.device, non_blocking=True)
        current.wait_stream(stream)  # the device waits, the host does not
        images.record_stream(current)
        labels.record_stream(current)
        return batch._replace(images=images, labels=labels)

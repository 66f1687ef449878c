"""The thread that draws; its copies need a GPU."""

import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from gab.training.prefetch import Prefetcher

CPU = torch.device("cpu")


class Batch(NamedTuple):
    images: Tensor
    labels: Tensor
    indices: Tensor


def batches(count: int, taken: list[int] | None = None) -> Iterator[Batch]:
    for number in range(count):
        if taken is not None:
            taken.append(number)
        one = torch.full((3,), number)
        yield Batch(one.view(3, 1, 1, 1).byte(), one, one)


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_every_batch_with_what_is_drawn_for_it(count: int) -> None:
    found = list(Prefetcher(batches(count), CPU, lambda batch, number: (batch.indices + 10, number)))
    assert [(int(batch.labels[0]), int(drawn[0]), number) for batch, (drawn, number) in found] == [
        (n, n + 10, n) for n in range(count)
    ]


def test_draws_for_the_next_while_one_is_used() -> None:
    """In another thread, and for one batch only: the loader has its own queue."""
    taken: list[int] = []
    drawing = threading.Event()
    threads = set()

    def draw(batch: Batch, number: int) -> None:
        threads.add(threading.current_thread())
        if number == 1:
            drawing.set()

    pairs = iter(Prefetcher(batches(5, taken), CPU, draw))
    next(pairs)
    assert drawing.wait(10)
    assert taken == [0, 1]
    pairs.close()
    [thread] = threads
    assert thread is not threading.current_thread()
    assert not thread.is_alive()


def test_errors_of_loader_and_thread_arrive() -> None:
    def broken() -> Iterator[Batch]:
        yield from batches(2)
        raise OSError("no such image")

    threads = set()

    def draw(_: Batch, number: int) -> None:
        threads.add(threading.current_thread())
        if number == 1:
            raise ValueError("no such number")

    with pytest.raises(OSError, match="no such image"):
        list(Prefetcher(broken(), CPU, lambda *_: threads.add(threading.current_thread())))
    with pytest.raises(ValueError, match="no such number"):
        list(Prefetcher(batches(3), CPU, draw))
    assert len(threads) == 2
    assert not any(thread.is_alive() for thread in threads)


def test_waiting_is_counted() -> None:
    """For the thread; not what the consumer does meanwhile."""
    started = time.perf_counter()
    prefetcher = Prefetcher(batches(2), CPU, lambda *_: time.sleep(0.1))
    for _ in prefetcher:
        time.sleep(0.2)
    assert 0.1 <= prefetcher.waited <= time.perf_counter() - started - 0.4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu() -> None:
    """Nothing is overwritten while it is used, though its memory goes round."""
    device = torch.device("cuda", torch.cuda.current_device())
    many = [
        Batch(torch.full((64, 3, 32, 32), n).byte().pin_memory(), torch.full((64,), n), torch.full((64,), n))
        for n in range(50)
    ]
    sums = []
    for batch, (drawn,) in Prefetcher(many, device, lambda batch, number: (batch.indices.double() + number,)):
        torch.cuda._sleep(1_000_000)
        sums.append(torch.stack([batch.images.double().mean(), batch.labels.double().mean(), drawn.mean()]))
    assert torch.equal(torch.stack(sums).cpu(), torch.arange(50).double()[:, None] * torch.tensor([1.0, 1.0, 2.0]))

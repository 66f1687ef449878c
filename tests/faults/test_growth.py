"""A long run needs no more memory, open files, threads, processes or time at its end than after some epochs."""

import ctypes
import gc
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from omegaconf import DictConfig

import train
from gab.tracking.observer import Observer
from tests.conftest import TINY
from tests.faults.conftest import RUN

EPOCHS, WARM, WINDOW = 50, 20, 10
SLOWER = 1.8  # times the processor time of an image, that nothing may grow to; seen beside other work: 1.4
LEAK = 50_000  # bytes per epoch, half of a batch of images; seen: 4,000
Seen = tuple[int, int, int, int]  # bytes of memory, open files, threads, processes


class Malloc(ctypes.Structure):
    """What malloc says of itself (`struct mallinfo2`)."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "free", "top")
    ]


def memory() -> int:
    """Bytes of memory in use: what is resident and of no file, without what malloc holds free.

    The latter grows by jumps of a megabyte, early or late, as free pieces come to lie differently.
    """
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = Malloc
    lines = Path("/proc/self/status").read_text().splitlines()
    resident = sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem"))) * 1024
    return resident - libc.mallinfo2().free


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def children() -> int:
    return len(child_processes())


def child_processes() -> list[str]:
    lists = [(task / "children").read_text().split() for task in Path("/proc/self/task").iterdir()]
    return [number for numbers in lists for number in numbers]


def processor_seconds() -> float:
    """Of this process and of its children: no other load of the machine is in it."""
    fields = [Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split() for child in child_processes()]
    ticks = sum(int(user) + int(system) for *_, user, system in (field[:13] for field in fields))
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def watch(config: DictConfig) -> list[Seen]:
    """Train, in a process that has done nothing else; what was seen after each epoch."""
    seen: list[Seen] = []
    write = Observer.write

    def write_and_look(self: Observer, kind: str, **fields: object) -> None:
        write(self, kind, **fields)
        if kind == "eval":
            if len(seen) >= WARM:
                gc.collect()
            if len(seen) == WARM:
                gc.freeze()  # so that looking for garbage is quick from now on
            seen.append((memory(), open_files(), threading.active_count(), children()))

    Observer.write = write_and_look  # type: ignore[method-assign]
    train.run(config)
    return seen


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33 or later")
@pytest.mark.parametrize("loader", ["torch", pytest.param("ffcv", marks=pytest.mark.ffcv)])
def test_fifty_epochs(
    loader: str, config: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if loader == "ffcv":
        pytest.importorskip("ffcv")
    data = [f"data.loader={loader}", f"data.root={tmp_path}", "tracking.wandb=offline"]
    steps = [f"train.epochs={EPOCHS}", "train.max_steps=4", "optim.cooldown_epochs=0"]
    monkeypatch.setenv("PYTHONMALLOC", "malloc")  # so that malloc knows of Python's small objects too
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
        run = config(*TINY, *RUN, *data, *steps, f"run.dir={tmp_path}", "run.name=run")
        seen = np.array(fresh.submit(watch, run).result())
    assert len(seen) == EPOCHS
    slope = np.polyfit(np.arange(WARM, EPOCHS), seen[WARM:, 0], 1)[0]
    assert slope < LEAK, f"{slope:.0f} bytes per epoch: {seen[WARM:, 0] - seen[WARM, 0]}"
    # The fewest of some epochs, since a checkpoint that is being written has a file open, in some of them.
    before, after = (np.min(seen[end - WINDOW : end, 1:], axis=0) for end in (WARM, EPOCHS))
    assert (after <= before).all(), f"open files, threads, processes: {before} became {after}"


@pytest.mark.slow
def test_twenty_epochs_at_one_rate(
    config: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processor time per epoch, of loading, augmenting and training: the last epochs as the first ones."""
    seen, write = [], Observer.write

    def write_and_look(self: Observer, kind: str, **fields: object) -> None:
        write(self, kind, **fields)
        if kind == "train":
            seen.append(processor_seconds())

    monkeypatch.setattr(Observer, "write", write_and_look)
    steps = ["train.epochs=22", "train.max_steps=4", "run.log_every=4", "optim.cooldown_epochs=0"]
    only = ["train.eval_every=22", "checkpoint.every_epochs=22", "augment=deit", "augment.mixing_group=4"]
    train.run(config(*TINY, *steps, *only, f"data.root={tmp_path}", f"run.dir={tmp_path}"))
    spent = np.diff(seen)
    assert len(spent) == 21
    first, last = spent[1:6].min(), spent[-5:].min()  # what else runs on the machine can only add
    assert last < SLOWER * first, f"seconds of each epoch: {spent.round(3)}"

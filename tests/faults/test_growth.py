"""A long run needs no more memory, open files, threads or processes at its end than after some epochs."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gab.tracking.observer import Observer

EPOCHS, WARM, WINDOW = 50, 20, 10
LEAK = 50_000  # bytes per epoch, half of a batch of images; seen: 7,000


def resident() -> int:
    """Bytes of memory that the process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def children() -> int:
    return sum(len((task / "children").read_text().split()) for task in Path("/proc/self/task").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("loader", ["torch", pytest.param("ffcv", marks=pytest.mark.ffcv)])
def test_fifty_epochs(
    loader: str, small_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if loader == "ffcv":
        pytest.importorskip("ffcv")
    memory: list[int] = []
    counts: list[tuple[int, int, int]] = []
    write = Observer.write

    def write_and_look(self: Observer, kind: str, **fields: object) -> None:
        write(self, kind, **fields)
        if kind == "eval":
            memory.append(resident())
            counts.append((open_files(), threading.active_count(), children()))

    monkeypatch.setattr(Observer, "write", write_and_look)
    data = [f"data.loader={loader}", f"data.root={tmp_path}", "tracking.wandb=offline"]
    small_run(tmp_path, *data, f"train.epochs={EPOCHS}", "train.max_steps=4", "optim.cooldown_epochs=0")
    assert len(memory) == EPOCHS
    slope = np.polyfit(np.arange(WARM, EPOCHS), memory[WARM:], 1)[0]
    assert slope < LEAK, f"{slope:.0f} bytes per epoch"
    # The fewest of some epochs, since a checkpoint that is being written has a file open, in some of them.
    before, after = (np.min(counts[end - WINDOW : end], axis=0) for end in (WARM, EPOCHS))
    assert (after <= before).all(), f"open files, threads, processes: {before} became {after}"

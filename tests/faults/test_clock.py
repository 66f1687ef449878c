"""Nothing depends on the time of day."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from gab.errors import Stopped
from gab.training.checkpoint_store import CheckpointStore
from scripts.same_bits import differences


@pytest.mark.usefixtures("clock_runs_backwards")
def test_the_clock_is_set_back(
    small_run: Callable[..., Path],
    undisturbed: Path,
    at_step: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Within a start and between two. Checkpoints by minutes still come."""
    saved: list[int] = []
    save = CheckpointStore.save

    def note_and_save(self: CheckpointStore, content: dict, **which: bool) -> None:
        saved.append(content["step"])
        save(self, content, **which)

    monkeypatch.setattr(CheckpointStore, "save", note_and_save)
    by_time = ["checkpoint.every_steps=null", "checkpoint.every_minutes=1e-9"]
    at_step(15, lambda: os.kill(os.getpid(), signal.SIGUSR1))
    with pytest.raises(Stopped):
        small_run(tmp_path, *by_time)
    assert set(saved) == set(range(1, saved[-1] + 1))  # every step
    assert differences(undisturbed, small_run(tmp_path, *by_time)) == []

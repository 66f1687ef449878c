"""What the processes of a run agree upon; the arithmetic and resuming are tested through train.py."""

import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from gab.distributed import signals
from gab.distributed.launch import launch
from gab.distributed.processes import Processes
from gab.errors import Stopped, UserError
from gab.training.agreement import Agreement
from gab.training.trainer import Trainer


class Idle(Trainer):
    """A trainer whose steps do nothing and whose disk is full."""

    def __init__(self, processes: Processes, folder: Path):
        self.processes, self.folder, self.agreement = processes, folder, Agreement(processes)
        self.config = SimpleNamespace(checkpoint=SimpleNamespace(every_minutes=10.0), train=SimpleNamespace(epochs=1))
        self.state = SimpleNamespace(step=0, epochs=0)
        self.steps_per_epoch = 10
        self.saved, self.saved_at = (0, 0), time.monotonic() - 3600
        self.saves: list[int] = []

    def save(self, *, last: bool = True, best: bool = False) -> None:
        self.saved, self.saved_at = (self.state.step, 0), time.monotonic()
        self.saves.append(self.state.step)

    def train_epoch(self, epoch: int) -> None:
        (self.folder / "trained").touch()
        raise UserError("no images")

    def _wait_for_checkpoint(self) -> None:
        if self.processes.first:
            time.sleep(1)
            raise UserError("the disk is full")

    def turn(self, times: int) -> None:
        for _ in range(times):
            self.state.step += 1
            self._turn()


def save_by_time(processes: Processes, folder: Path) -> None:
    trainer = Idle(processes, folder)
    trainer.turn(times=6)
    (folder / str(processes.rank)).write_text(repr(trainer.saves))


@pytest.mark.parametrize(("count", "step"), [(1, 1), (2, 2)])
def test_minutes_save_once_in_all_processes(count: int, step: int, forking: None, tmp_path: Path) -> None:
    launch(save_by_time, (tmp_path,), count=count, device="cpu")
    assert [path.read_text() for path in tmp_path.iterdir()] == [f"[{step}]"] * count


def stop_on_a_full_disk(processes: Processes, folder: Path) -> None:
    signals.asked = lambda: signal.SIGUSR1
    Idle(processes, folder).turn(times=2)


def test_a_stop_that_could_not_be_saved_is_no_stop(forking: None, tmp_path: Path) -> None:
    """Whoever writes nothing must not say that all is saved, which would have the job queued again."""
    with pytest.raises(UserError, match="the disk is full"):
        launch(stop_on_a_full_disk, (tmp_path,), count=2, device="cpu")


def stop_before_the_first_step(processes: Processes, folder: Path) -> None:
    if processes.first:
        time.sleep(1)  # such as a dashboard that starts
        raise Stopped(signal.SIGUSR1, "before its first step")
    Idle(processes, folder).fit(observer=None)


def test_none_steps_before_all_can_be_asked_to_stop(forking: None, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        launch(stop_before_the_first_step, (tmp_path,), count=2, device="cpu")
    assert not (tmp_path / "trained").exists()

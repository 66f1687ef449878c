"""Disks and clocks that fail; and the run that nothing happened to, which every other one must equal."""

import itertools
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gab.tracking.observer import Observer
from tests.conftest import TINY

# A checkpoint in the middle of an epoch too, and a row that averages over the stop.
RUN = ["model.gab=true", "train.eval_images=64", "run.log_every=3", "checkpoint.every_steps=4"]


@pytest.fixture(scope="session")
def small_run(tiny_run: Callable[..., Path]) -> Callable[..., Path]:
    """`small_run(folder, *overrides)`: train to the end, in this process; returns the run's folder."""

    def run(folder: Path, *overrides: str) -> Path:
        return tiny_run(folder, *RUN, *overrides)

    return run


@pytest.fixture(scope="session")
def undisturbed(small_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing happened to."""
    return small_run(tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture
def tiny_command() -> list[str]:
    """The arguments of train.py for the same run, but for its place."""
    return [*TINY, *RUN]


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], object]], None]:
    """`at_step(k, act)`: act once, just before the row of step k is written."""

    def plan(step: int, act: Callable[[], object]) -> None:
        write = Observer.write
        acts = iter([act])

        def act_and_write(self: Observer, kind: str, **fields: object) -> None:
            if fields["step"] == step:
                next(acts, lambda: None)()
            write(self, kind, **fields)

        monkeypatch.setattr(Observer, "write", act_and_write)

    return plan


class SmallDisk:
    """A file system of some megabytes."""

    def __init__(self, folder: Path):
        self.folder, self.filler = folder, folder / "filler"

    def fill(self, leave: int = 0) -> None:
        """Leave only so many bytes."""
        with self.filler.open("ab", buffering=0) as file:
            for size in (1 << 20, 1 << 12):
                try:
                    while file.write(bytes(size)) == size:
                        pass
                except OSError:
                    continue
            file.truncate(max(file.tell() - leave, 0))

    def make_room(self) -> None:
        self.filler.unlink()

    def make_read_only(self, wish: bool = True) -> None:
        subprocess.run(["mount", "-o", f"remount,{'ro' if wish else 'rw'}", str(self.folder)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A disk that can be filled, where mounting is allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no small disk: {done.stderr.strip()}")
    yield SmallDisk(folder)
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def read_only_folder(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder that cannot be written to; permissions do not bind root."""
    if os.geteuid() == 0:
        disk: SmallDisk = request.getfixturevalue("small_disk")
        disk.make_read_only()
        yield disk.folder
        return
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o555)
    yield folder
    folder.chmod(0o755)


@pytest.fixture
def clock_runs_backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the time of day is an hour before the one before it."""
    hours = itertools.count(1)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 3600 * next(hours))
    monkeypatch.setattr(time, "time_ns", lambda: int(1e9 * (now - 3600 * next(hours))))

"""A start of a run that is there to be killed: its processes, what it is doing, and how it ends."""

import contextlib
import faulthandler
import json
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TRAIN = str(ROOT / "train.py")
GLANCE = 0.001  # seconds between two looks: a checkpoint is written within some hundredths

# Phases as one sees them from outside, in their order.
STARTING, RESUMING, TRAINING = "starting", "resuming", "training"
WRITING, EVALUATING, CLOSING = "writing", "evaluating", "closing"
PHASES = (STARTING, RESUMING, TRAINING, WRITING, EVALUATING, CLOSING)


class Victim:
    """Processes that train in `folder`.

    Args:
        overrides: of train.py's config.
        count: processes of the run.
        fresh: start them by the command, as a user does. Otherwise they are forks of this process, which has imported
            everything, and their ranks are given as torchrun and srun give them: a start takes a tenth of the time.
        log: what they print is added to it.
    """

    def __init__(self, folder: Path, overrides: list[str], *, count: int, fresh: bool, log: Path):
        self.folder, self.count, self.fresh = folder, count, fresh
        self._before = self._signs()
        if fresh:
            command = [sys.executable, TRAIN, *overrides, f"run.processes={count}"]
            told = {**os.environ, "PYTHONFAULTHANDLER": "1"}
            with log.open("ab") as file:
                self._command = subprocess.Popen(
                    command, stdout=file, stderr=file, cwd=ROOT, env=told, start_new_session=True
                )
            self.leaders = [self._command.pid]
            return
        fork = multiprocessing.get_context("fork")
        places = [_place(rank, count) for rank in range(count)] if count > 1 else [{}]
        port = {"MASTER_PORT": str(_free_port())} if count > 1 else {}
        self._forks = [fork.Process(target=_train, args=(overrides, place | port, log)) for place in places]
        for process in self._forks:
            process.start()
        self.leaders = [process.pid for process in self._forks if process.pid]

    # -- what it does -------------------------------------------------------------------------------------------------

    def codes(self) -> list[int | None]:
        """Exit codes of the processes that the user, torchrun or srun would have started; negative: the signal."""
        return [self._command.poll()] if self.fresh else [process.exitcode for process in self._forks]

    def ended(self) -> bool:
        return None not in self.codes()

    def phase(self) -> str:
        """What the run is doing."""
        part, record, locks = self._signs()
        part_before, record_before, locks_before = self._before
        if part and part != part_before:
            return WRITING
        if record == record_before:
            return RESUMING if locks - locks_before else STARTING
        row = last_row(self.folder)
        if row.get("kind") == "end":
            return CLOSING
        return EVALUATING if row.get("kind") == "train" and row["epoch"] == int(row["epoch"]) else TRAINING

    def _signs(self) -> tuple[float, float, set[Path]]:
        """When the unfinished checkpoint and the record were written last (0: there is none), and the locks."""
        times = []
        for path in (self.folder / "checkpoints" / ".last.pt.part", self.folder / "record.jsonl"):
            try:
                times.append(path.stat().st_mtime)
            except FileNotFoundError:
                times.append(0.0)
        return times[0], times[1], set(self.folder.glob("lock.*"))

    def reaches(self, phase: str, limit: float) -> bool:
        """Wait for the phase; False where the run ends before.

        Raises:
            TimeoutError: neither within `limit` seconds.
        """
        deadline = time.monotonic() + limit
        while self.phase() != phase:
            if self.ended():
                return False
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"a {'fresh' if self.fresh else 'forked'} start did not come to {phase!r} in {limit:g} s"
                )
            time.sleep(GLANCE)
        return True

    # -- its end ------------------------------------------------------------------------------------------------------

    def members(self) -> dict[int, str]:
        """Process ids of the run and what each of them is: launcher, rank, or worker (of a loader)."""
        alone = self.count == 1 or not self.fresh
        family = {pid: parent for pid, parent in self._family().items() if not _helps_python(pid)}
        ranks = {pid for pid, parent in family.items() if (pid if alone else parent) in self.leaders}
        return {pid: "rank" if pid in ranks else "launcher" if pid in self.leaders else "worker" for pid in family}

    def left(self) -> list[int]:
        """All process ids that are left of the run."""
        return list(self._family())

    def _family(self) -> dict[int, int]:
        """Processes of the run and their parents; a zombie is none."""
        return {
            pid: parent
            for pid, state, parent, session in _processes()
            if state not in "ZX" and (pid in self.leaders or session in self.leaders)
        }

    def send(self, number: int, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def wait(self, limit: float) -> bool:
        """Wait for the end of all processes; False where some are left after `limit` seconds."""
        deadline = time.monotonic() + limit
        while not self.ended() or self.left():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def tell(self) -> None:
        """Have every process print where its threads are, and end."""
        for pid in self.left():
            self.send(signal.SIGABRT, pid)
        self.wait(10)

    def destroy(self) -> None:
        """Leave nothing behind."""
        for pid in self.left():
            self.send(signal.SIGKILL, pid)
        self.wait(30)


def last_row(folder: Path) -> dict:
    """The last whole row of the record, or an empty one."""
    with contextlib.suppress(FileNotFoundError, ValueError, IndexError):
        return json.loads((folder / "record.jsonl").read_bytes().rpartition(b"\n")[0].rpartition(b"\n")[2])
    return {}


def _train(overrides: list[str], environment: dict[str, str], log: Path) -> None:
    """What a fork does: all that the command does after its imports."""
    os.setsid()
    os.environ.update(environment)
    os.chdir(ROOT)
    with log.open("ab") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    faulthandler.enable(2)
    sys.argv = [TRAIN, *overrides]
    runpy.run_path(TRAIN, run_name="__main__")


def _place(rank: int, count: int) -> dict[str, str]:
    given = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    return {name: str(value) for name, value in given.items()} | {"MASTER_ADDR": "127.0.0.1"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _processes() -> Iterator[tuple[int, str, int, int]]:
    """(process id, state, parent, session) of every process of the machine."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                state, parent, _, session, *_ = (entry / "stat").read_text().rpartition(")")[2].split()
                yield int(entry.name), state, int(parent), int(session)


def _helps_python(pid: int) -> bool:
    """Whether the process is multiprocessing's keeper of semaphores, which is no part of the run."""
    with contextlib.suppress(OSError):
        return b"resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False

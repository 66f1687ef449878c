"""One start at a time in a run's folder: a lock that a crash cannot leave behind, on any file system.

No flock, which network file systems forget or fake, and no time of day, which machines disagree on. The lock is a
small file `lock.N` that its owner alone writes to: who it is, and a beat that it raises every few seconds. Another
start judges the owner dead where it can know that (same machine and no such process; an earlier start of the same SLURM
job), or when the beat rests while it watches. It takes over by creating `lock.N+1`, which only one start can do, and
removes the file of the dead one, from which an owner that was only asleep sees that it may not go on.
"""

import getpass
import itertools
import json
import os
import random
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType

from gab.errors import UserError

LOOKS = 30  # at a beat that rests before its owner is dead; looks are counted, as a disk that hangs stops both sides


@dataclass(frozen=True)
class Owner:
    """A start of a run, as others must know it to tell whether it still runs."""

    host: str
    pid: int
    started: str  # of the process, in ticks since its machine came up: a number of a process is used again
    boot: str  # changes whenever the machine comes up
    pid_space: str  # differs between containers of one machine
    user: str
    job: str = ""  # of SLURM, as scancel takes it; empty: none
    cluster: str = ""
    restarts: int = 0  # of the job
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    @classmethod
    def this_process(cls) -> "Owner":
        env, pid = os.environ, os.getpid()
        member = "{SLURM_ARRAY_JOB_ID}_{SLURM_ARRAY_TASK_ID}" if "SLURM_ARRAY_TASK_ID" in env else "{SLURM_JOB_ID}"
        return cls(
            host=socket.gethostname(),
            pid=pid,
            started=_started(pid) or "",
            boot=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            pid_space=os.readlink("/proc/self/ns/pid"),
            user=_user(),
            job=member.format_map(env) if "SLURM_JOB_ID" in env else "",
            cluster=env.get("SLURM_CLUSTER_NAME", ""),
            restarts=int(env.get("SLURM_RESTART_COUNT", 0)),
        )

    def lives(self, observer: "Owner") -> bool | None:
        """Whether this start still runs, as far as `observer`, the process that asks, can know; None: it cannot."""
        here = (self.boot, self.pid_space) == (observer.boot, observer.pid_space)
        if here and self.user == observer.user:  # a machine may hide the processes of other people
            return _started(self.pid) == self.started
        same_job = self.job and (self.job, self.cluster) == (observer.job, observer.cluster)
        return False if same_job and self.restarts < observer.restarts else None

    def __str__(self) -> str:
        job = f", SLURM job {self.job}" if self.job else ""
        return f"process {self.pid} on host {self.host} (user {self.user}{job})"

    @property
    def end(self) -> str:
        """The command that ends it."""
        return f"scancel {self.job}" if self.job else f"kill {self.pid} on {self.host}"


class RunLock:
    """The lock of the folder `folder`, held inside a `with` block by the first process of a run.

    Args:
        beat: seconds between two signs of life.
        patience: seconds without one after which an owner elsewhere is dead; several beats.
        owner: who takes the lock; by default this process.
        say: is told that the start waits.
    """

    def __init__(
        self,
        folder: Path,
        *,
        beat: float = 5.0,
        patience: float = 30.0,
        owner: Owner | None = None,
        say: Callable[[str], None] | None = None,
    ):
        self.folder, self.beat, self.patience = folder, beat, patience
        self.owner = owner or Owner.this_process()
        self._say = say or (lambda text: print(text, file=sys.stderr, flush=True))
        self._path = folder / "lock.0"
        self._beats = itertools.count()
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, name="lock", daemon=True)

    def __enter__(self) -> "RunLock":
        """Take the lock.

        Raises:
            UserError: another start holds it, or the folder cannot be written.
        """
        try:
            while not self._take():
                time.sleep(random.uniform(0, 0.1))  # so that two that have met do not meet again
        except OSError as error:
            raise UserError(
                f"cannot write {self._path} ({error.strerror or error}): make room or fix its permissions, or set "
                "run.dir to another place"
            ) from error
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._released.set()
        self._thread.join()
        with suppress(OSError):  # what cannot be removed is found dead by the next start
            if self._is_ours():
                self._path.unlink(missing_ok=True)

    def check(self) -> None:
        """Call this before anything that two starts at once would spoil.

        Raises:
            UserError: another start has taken over, or somebody removed the lock.
        """
        if not self._is_ours():
            others = [str(owner) for owner in map(_owner, _locks(self.folder).values()) if owner]
            raise UserError(
                f"{self.folder} was taken over by {others[0] if others else 'another start'} while this one gave no "
                "sign of life, so this one ends without writing there: leave the run to the other, or end that and "
                "repeat the same command"
            )

    # -- taking it ----------------------------------------------------------------------------------------------------

    def _take(self) -> bool:
        """One attempt; False where another start came in between."""
        found = _locks(self.folder)
        for path, content in found.items():
            self._refuse_living(path, content)
        self._path = self.folder / f"lock.{1 + max(map(_number, found), default=0)}"
        try:
            with open(self._path, "xb", buffering=0) as file:  # at most one start succeeds
                try:
                    file.write(self._content())
                except OSError:
                    self._path.unlink(missing_ok=True)
                    raise
        except FileExistsError:
            return False
        others = _locks(self.folder)
        others.pop(self._path, None)
        if not others.items() <= found.items():  # somebody has come, or come to life again, since they were judged
            self._path.unlink(missing_ok=True)
            return False
        for path in found:
            path.unlink(missing_ok=True)
        return True

    def _refuse_living(self, path: Path, content: bytes) -> None:
        """Return when the owner of a lock file is dead, or the file gone.

        Raises:
            UserError: it is alive.
        """
        owner = _owner(content)
        lives = owner.lives(self.owner) if owner else None  # a full disk leaves an empty file, of nobody
        if lives is None:
            name = owner or "the start that wrote it"
            self._say(f"{path} is there: waiting up to {self.patience:g} s to see whether {name} is alive")
            lives = self._beats_seen(path, content)
            owner = _owner(_read(path) or b"") or owner
        if lives:
            who, end = (owner, owner.end) if owner else ("another start", "end it")
            raise UserError(
                f"{self.folder} is being trained by {who}, which is alive: wait for it, end it ({end}), or take "
                "another run.name"
            )

    def _beats_seen(self, path: Path, content: bytes) -> bool:
        """Watch a lock file; whether its content moves."""
        for _ in range(LOOKS):
            time.sleep(self.patience / LOOKS)
            now = _read(path)
            if now != content:
                return now is not None
        return False

    # -- holding it ---------------------------------------------------------------------------------------------------

    def _content(self) -> bytes:
        """The lock's content, of equal length at every beat: overwritten in place, which works on a full disk too."""
        return json.dumps({**asdict(self.owner), "beat": f"{next(self._beats):012d}"}).encode()

    def _keep_beating(self) -> None:
        while not self._released.wait(self.beat):
            try:
                with open(self._path, "r+b", buffering=0) as file:  # never makes a file, so that one removed stays so
                    if not self._wrote(file.read()):
                        return
                    file.seek(0)
                    file.write(self._content())
            except FileNotFoundError:
                return
            except OSError:  # a disk that fails for a while; the next beat may be written
                continue

    def _is_ours(self) -> bool:
        content = _read(self._path)
        return content is not None and self._wrote(content)

    def _wrote(self, content: bytes) -> bool:
        owner = _owner(content)
        return owner is not None and owner.token == self.owner.token


def _locks(folder: Path) -> dict[Path, bytes]:
    """Contents of the lock files in the folder."""
    contents = {path: _read(path) for path in folder.glob("lock.*") if path.suffix[1:].isdigit()}
    return {path: content for path, content in contents.items() if content is not None}


def _number(path: Path) -> int:
    return int(path.suffix[1:])


def _read(path: Path) -> bytes | None:
    """Opened anew each time, which is when network file systems ask the server; None: there is no such file."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _owner(content: bytes) -> Owner | None:
    try:
        fields = json.loads(content)
        del fields["beat"]
        return Owner(**fields)
    except (ValueError, TypeError, KeyError):
        return None


def _started(pid: int) -> str | None:
    """When the process began, in ticks since the machine came up; None: it is dead."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in "ZX" else rest[18]  # a zombie only waits for its parent


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may have no name for the number
        return str(os.getuid())

"""Runs of several real processes, forked from the test's own, so that nothing is imported anew."""

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conf.errors import sentences
from gab.distributed import launch, watch

TIMEOUT = 120  # seconds for what takes one or two


class Forked:
    """A process that runs `work`, its output in a file."""

    def __init__(self, work: Callable[[], Any], output: Path):
        self.output = output
        self.code: int | None = None
        self.pid = os.fork()
        if not self.pid:
            self._run(work)

    def _run(self, work: Callable[[], Any]) -> None:
        code = 1
        try:
            os.setsid()  # signals to its group are no signals to the tests
            os.dup2(os.open(self.output, os.O_CREAT | os.O_WRONLY | os.O_APPEND), 1)
            os.dup2(1, 2)
            sys.stdout, sys.stderr = (os.fdopen(fd, "w", buffering=1, closefd=False) for fd in (1, 2))
            with sentences():
                work()
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def ended(self) -> bool:
        """Whether it has; then `code` is its exit code, negative for a signal."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is not None

    def wait(self) -> int:
        """Its exit code."""
        deadline = time.monotonic() + TIMEOUT
        while not self.ended():
            assert time.monotonic() < deadline, f"no end: {self.text}"
            time.sleep(0.02)
        assert self.code is not None
        return self.code

    def wait_for(self, text: str, times: int = 1) -> None:
        """Return when it has printed `text` so often."""
        deadline = time.monotonic() + TIMEOUT
        while self.text.count(text) < times:
            assert time.monotonic() < deadline, f"no {text!r} in {self.text!r}"
            time.sleep(0.02)

    @property
    def text(self) -> str:
        return self.output.read_text() if self.output.exists() else ""

    def kill(self) -> None:
        if not self.ended():
            os.kill(self.pid, signal.SIGKILL)
            self.wait()


Starter = Callable[..., list[Forked]]


@pytest.fixture
def short(forking: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A heartbeat that judges within seconds."""
    for name, seconds in {"INTERVAL": 0.1, "SILENCE": 2.0, "GRACE": 1.0}.items():
        monkeypatch.setattr(watch, name, seconds)
    monkeypatch.setattr(launch, "GRACE", 2.0)


@pytest.fixture
def forked(tmp_path: Path) -> Iterator[Callable[[Callable[[], Any]], Forked]]:
    """`forked(work)`: run it in a process of its own."""
    started: list[Forked] = []

    def start(work: Callable[[], Any]) -> Forked:
        started.append(Forked(work, tmp_path / f"output{len(started)}"))
        return started[-1]

    yield start
    for process in started:
        process.kill()


@pytest.fixture
def start(short: None, forked: Callable[..., Forked]) -> Starter:
    """`start(work, *args, given=False, count=2)`: `launch` it; the parent, or all that torchrun would start."""

    def started(work: Callable[..., None], *args: Any, given: bool = False, count: int = 2) -> list[Forked]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]

        def run(rank: int) -> Callable[[], None]:
            def work_here() -> None:
                if given:
                    ranks = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": count}
                    os.environ.update({name: str(value) for name, value in ranks.items()})
                    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
                launch.launch(work, args, count=count, device="cpu")

            return work_here

        return [forked(run(rank)) for rank in range(count if given else 1)]

    return started

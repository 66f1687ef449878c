"""Runs of several real processes."""

import os
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
from tests.fresh import FRESH

TIMEOUT = 120  # seconds for what takes one or two
QUICK = ((watch, {"INTERVAL": 0.1, "SILENCE": 2.0, "GRACE": 1.0}), (launch, {"START": "fork", "GRACE": 2.0}))


def work_and_exit(output: Path, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """What the process does: the work, with the exit code of a command, and a heartbeat that judges within seconds."""
    code = 1
    try:
        os.setsid()  # signals to its group are no signals to the tests
        os.dup2(os.open(output, os.O_CREAT | os.O_WRONLY | os.O_APPEND), 1)
        os.dup2(1, 2)
        sys.stdout, sys.stderr = (os.fdopen(fd, "w", buffering=1, closefd=False) for fd in (1, 2))
        for module, values in QUICK:
            vars(module).update(values)
        with sentences():
            work(*args)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


class Forked:
    """A process that runs `work(*args)`, its output in a file."""

    def __init__(self, output: Path, work: Callable[..., Any], args: tuple[Any, ...]):
        self.output = output
        self.process = FRESH.Process(target=work_and_exit, args=(output, work, args))
        self.process.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def ended(self) -> bool:
        return not self.process.is_alive()

    def wait(self) -> int:
        """Its exit code, negative for a signal."""
        self.process.join(TIMEOUT)
        assert self.process.exitcode is not None, f"no end: {self.text}"
        return self.process.exitcode

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
        self.process.kill()
        self.process.join()


Starter = Callable[..., list[Forked]]


@pytest.fixture
def forked(tmp_path: Path) -> Iterator[Callable[..., Forked]]:
    """`forked(work, *args)`: run it, a function of a module, in a process of its own."""
    started: list[Forked] = []

    def start(work: Callable[..., Any], *args: Any) -> Forked:
        started.append(Forked(tmp_path / f"output{len(started)}", work, args))
        return started[-1]

    yield start
    for process in started:
        process.kill()


def launch_as_given(rank: int, count: int, port: int, work: Callable[..., None], args: tuple[Any, ...]) -> None:
    """What torchrun would start."""
    ranks = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in ranks.items()}, MASTER_ADDR="127.0.0.1")
    launch_here(count, work, args)


def launch_here(count: int, work: Callable[..., None], args: tuple[Any, ...]) -> None:
    launch.launch(work, args, count=count, device="cpu")


@pytest.fixture
def start(forked: Callable[..., Forked]) -> Starter:
    """`start(work, *args, given=False, count=2)`: `launch` it; the parent, or all that torchrun would start."""

    def started(work: Callable[..., None], *args: Any, given: bool = False, count: int = 2) -> list[Forked]:
        if not given:
            return [forked(launch_here, count, work, args)]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        return [forked(launch_as_given, rank, count, port, work, args) for rank in range(count)]

    return started

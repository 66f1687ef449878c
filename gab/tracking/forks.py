"""Forks and programs that two threads of this process start at once.

A fork inherits every open pipe. One that happens while another thread starts a program holds an end of the pipes to
that program too, so whoever reads them waits for the end of the fork. The loader forks its workers, which live as long
as the run, while W&B starts wandb-core and git.
"""

import functools
import os
import subprocess
import threading
from typing import Any

LIMIT = 10.0  # seconds that a fork waits for a program to start, which takes milliseconds

_starting = threading.RLock()
_waited = threading.local()


@functools.cache
def keep_apart() -> None:
    """From now on, no thread forks while another one starts a program."""
    start = subprocess.Popen.__init__

    @functools.wraps(start)
    def start_alone(self: Any, *args: Any, **kwargs: Any) -> None:
        with _starting:
            start(self, *args, **kwargs)

    subprocess.Popen.__init__ = start_alone  # type: ignore[method-assign]
    os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_renew)


def _before() -> None:
    _waited.held = _starting.acquire(timeout=LIMIT)


def _after() -> None:
    if _waited.held:
        _starting.release()


def _renew() -> None:
    """In a fork, which has this thread only, nobody starts a program."""
    global _starting
    _starting = threading.RLock()

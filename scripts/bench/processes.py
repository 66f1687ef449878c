"""Measurements in processes of their own."""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any


def in_a_process(script: str, *arguments: str) -> Any:
    """The last line that `script arguments` prints in a new process, read as JSON."""
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


class Served:
    """`script arguments` in a process that stays: it measures each time it is asked, so that several can take turns.

    It is to call `serve`. Its first answer says what it is, and comes when it is ready to measure.
    """

    def __init__(self, script: str, *arguments: str, deadline: float | None = None):
        """`deadline`: by `time.monotonic()`, when it is ended if it has not answered."""
        command = [sys.executable, script, *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.deadline = deadline
        self.about = self._answer()

    def ask(self, question: str = "") -> Any:
        """A measurement, or None where the process has ended or has not answered in time."""
        if self.process.poll() is not None:
            return None
        assert self.process.stdin
        self.process.stdin.write(f"{question}\n".encode())
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout
        left = None if self.deadline is None else max(self.deadline - time.monotonic(), 0.0)
        if not select.select([self.process.stdout], [], [], left)[0]:
            self.close()
            return None
        line = self.process.stdout.readline()
        return json.loads(line) if line else None

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


def serve(about: Any, measure: Callable[[str], Any]) -> None:
    """The other side of `Served`: `about` at once, then what `measure` gives for every question.

    Whatever else is printed, by libraries too, goes to standard error.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps(about), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(measure(line.rstrip("\n"))), file=answers, flush=True)

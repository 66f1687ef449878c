"""What a run does when it is asked to stop: by SLURM (USR1, USR2, TERM), by Ctrl-C, or by `kill`.

Until `defer` is called there is nothing to save, and a signal ends the run at once, as an exception. After it, a signal
is only noted, and `asked` tells: whoever has called `defer` looks there and stops in good order.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess

from gab.errors import INTERRUPTED, Stopped

NAMES = {
    signal.SIGINT: "Ctrl-C",
    signal.SIGTERM: "SIGTERM (scancel or preemption)",
    signal.SIGUSR1: "SIGUSR1 (the job's time is nearly up)",
    signal.SIGUSR2: "SIGUSR2 (the job's time is nearly up)",
}
REQUEUE = (signal.SIGUSR1, signal.SIGUSR2)  # SLURM warns by these; who cancels or interrupts does not want it back


@dataclass
class _Run:
    """What this process knows about the signals of its run."""

    asked: int = 0
    interrupts: int = 0
    deferred: bool = False
    quiet: bool = False
    children: Sequence[BaseProcess] = ()


_run = _Run()


def name(number: int) -> str:
    """A signal as people call it."""
    return NAMES.get(signal.Signals(number), signal.Signals(number).name)


def sentence(stopped: Stopped, then: str = "the same command goes on") -> str:
    """What to say when a run has stopped, and how it goes on."""
    return f"stopped by {name(stopped.signal)} {stopped.where}: {then}"


def asked() -> int:
    """The number of the first signal that asked this run to stop, or 0."""
    return _run.asked


def defer() -> None:
    """From here to the end of the run, a signal no longer ends it at once: `asked` tells."""
    _run.deferred = True


@contextlib.contextmanager
def listening(*, quiet: bool = False, children: Sequence[BaseProcess] = ()) -> Iterator[None]:
    """`listen` for a while; afterwards signals do what they did before."""
    global _run
    if threading.current_thread() is not threading.main_thread():  # Python handles signals there only
        yield
        return
    outer, before = _run, {number: signal.getsignal(number) for number in NAMES}
    try:
        listen(quiet=quiet, children=children)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _run = outer


def listen(*, quiet: bool = False, children: Sequence[BaseProcess] = ()) -> None:
    """Handle the signals of a run, in the main thread.

    Args:
        quiet: another process of the run speaks for this one, and ends it at the second Ctrl-C.
        children: processes to which every signal is passed on; the list may grow.
    """
    global _run
    _run = _Run(quiet=quiet, children=children)
    for number in NAMES:
        signal.signal(number, _handle)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, NAMES)  # who has started us may have used `blocked`


@contextlib.contextmanager
def blocked() -> Iterator[None]:
    """Processes started in here get no signal before they listen themselves: it would end them as they import."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, NAMES)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _handle(number: int, frame: object) -> None:
    first, _run.asked = not _run.asked, _run.asked or number
    _run.interrupts += number == signal.SIGINT
    if _run.interrupts > 1 and not _run.quiet:
        for child in _run.children:
            _send(child, signal.SIGKILL)
        os._exit(INTERRUPTED)
    for child in _run.children:
        _send(child, number)
    if first and not (_run.deferred or _run.children):
        raise KeyboardInterrupt if number == signal.SIGINT else Stopped(number, "before its first step")
    if number == signal.SIGINT and not _run.quiet:
        os.write(2, b"\nCtrl-C: stopping; once more ends it at once\n")


def _send(child: BaseProcess, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        if child.pid and child.is_alive():
            os.kill(child.pid, number)

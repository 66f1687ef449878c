"""How a command of this project ends when it does not end well: the exceptions, and the exit codes that they become."""

from collections.abc import Iterable

USER_ERROR = 2  # a setting, file or model that cannot be used
LOST_PROCESS = 3  # another process of the run has died or hangs
STOPPED = 75  # a signal asked for it; the same command goes on (EX_TEMPFAIL of sysexits.h)
INTERRUPTED = 130  # Ctrl-C, as shells have it: 128 + SIGINT


class UserError(ValueError):
    """A setting, checkpoint or model that cannot be used; the message names it and the remedy."""


class Unmeasurable(UserError):
    """An evaluator finds nothing in a network whose weights are as they are now; all processes of a run raise it alike.

    Training goes on without its numbers, since later weights may have some.
    """


class LostProcess(RuntimeError):
    """A process of the run has died or hangs; the message names it, and the others have ended too."""


class Stopped(Exception):
    """A signal asked the run to stop, and it did.

    Args:
        signal: its number.
        where: to be read after "stopped by SIGTERM", such as "at step 1,204, which is saved".
    """

    def __init__(self, signal: int, where: str):
        super().__init__(signal, where)
        self.signal, self.where = signal, where


def check_choice(key: str, value: object, known: Iterable[str]) -> None:
    """Raise UserError where `value` of the setting `key` is none of the `known` ones."""
    names = list(known)
    if value not in names:
        raise UserError(f"{key}={value} is unknown: choose one of {', '.join(names)}")


def check_positive(key: str, value: float | None) -> None:
    """Raise UserError where `value` of the setting `key` is not above 0; None passes."""
    if value is not None and not value > 0:
        raise UserError(f"{key}={value:g}: give a positive number")


def check_at_least(key: str, value: float | None, least: int) -> None:
    """Raise UserError where `value` of the setting `key` is below `least`; None passes."""
    if value is not None and not value >= least:
        raise UserError(f"{key}={value:g}: give a number of at least {least}")

"""How a command of this project ends when it does not end well: the exceptions, and the exit codes that they become."""

USER_ERROR = 2  # a setting, file or model that cannot be used
LOST_PROCESS = 3  # another process of the run has died or hangs
STOPPED = 75  # a signal asked for it; the same command goes on (EX_TEMPFAIL of sysexits.h)
INTERRUPTED = 130  # Ctrl-C, as shells have it: 128 + SIGINT


class UserError(ValueError):
    """A setting, checkpoint or model that cannot be used; the message names it and the remedy."""


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

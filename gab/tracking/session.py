"""One W&B run that cannot hurt: when it fails it is opened again, or goes on offline, or is given up, with a warning.

W&B is imported only when a run is opened. Nothing here may be called from the training thread: `init` may block for
40 s without a network, and every call may block for ever when wandb-core hangs.
"""

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gab.errors import STOPPED, UserError
from gab.tracking.config import TrackingConfig
from gab.tracking.metrics import BEST
from gab.tracking.wandb_server import ask, client

MODES = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "disabled": "disabled"}
CONFIRMING = 5  # seconds for asking the server what it has
FAILURES = 4  # of one start of a run, after which W&B is given up
DEFAULTS: dict[str, Any] = {
    "console": "off",  # W&B would wrap stdout, so that a hanging wandb-core would stop whoever prints
    "init_timeout": 30,
    "finish_timeout": 15,
    "finish_timeout_raises": True,
}


def resolve_mode(tracking: TrackingConfig, environment: Mapping[str, str] = os.environ) -> str:
    """online, offline or disabled: `tracking.wandb`, else WANDB_MODE, else offline.

    Raises:
        UserError: it is none of these.
    """
    source = "WANDB_MODE" if tracking.wandb is None else "tracking.wandb"
    wanted = tracking.wandb or environment.get("WANDB_MODE") or "offline"
    if wanted not in MODES:
        raise UserError(f"{source}={wanted} is not a mode of W&B: set {source} to online, offline or disabled.")
    return MODES[wanted]


class Session:
    """One W&B run: open, log, close. No method raises.

    Args:
        mode: online or offline.
        options: further arguments of `wandb.init` (`id`, `dir`, `project`, `config` ...).
        next_row: rows that W&B has got from earlier starts; what its server says counts more.
        warn: takes one sentence.
    """

    def __init__(self, mode: str, options: dict[str, Any], next_row: int, warn: Callable[[str], None]) -> None:
        self.next_row = next_row  # the number of the row that W&B lacks next
        self.uploaded: int | None = None  # rows that its server has for certain; None: it was not reached
        self.folders: list[Path] = []  # one per opened run: W&B starts a new one whenever a run is opened again
        self.url: str | None = None
        self._first = next_row  # that the offline run which is open begins with
        self._cut: list[Path] = []  # offline runs of this start that miss rows, until another one has all of them
        self._mode = mode
        self._options = options
        self._failures_left = FAILURES
        self._abandoned = False
        self._warn = warn
        self._run: Any = None

    @property
    def is_open(self) -> bool:
        return self._run is not None

    def open(self) -> None:
        """Starts the W&B run, or does without."""
        while self._failures_left and self._run is None:
            try:
                self._run = start(self._mode, self._options)
                self.folders.append(Path(self._run.settings.sync_dir))
                if self._mode == "online":
                    self.url = self._run.url
                    self.next_row = self.uploaded = self._run.starting_step
                else:
                    self._first = self.next_row
            except Exception as error:
                what, self._mode = f"W&B {self._mode} did not start", "offline"
                self._recover(error, what)

    def log(self, metrics: dict[str, Any]) -> bool:
        """Logs row `next_row`; whether W&B took it. If not, the run may be open again and lack another row."""
        try:
            self._run.log(metrics, step=self.next_row, commit=True)  # without: a row would wait for the next one
        except Exception as error:  # not only wandb.Error: a killed wandb-core is a ConnectionResetError
            self._recover(error, "W&B failed")
            self.open()
            return False
        self.next_row += 1
        return True

    def summarise(self, best: dict[str, dict[str, float]]) -> None:
        """Corrects the highest values, which W&B counts from the last start of the run only."""
        with contextlib.suppress(Exception):  # whatever ails it, the next `log` or `close` will meet it too
            self._run.summary.update(best)

    def close(self, exit_code: int) -> bool:
        """Ends the run, blocking until everything is uploaded, for `finish_timeout` at most.

        False if wandb-core had died and the run is open again, as it may lack rows now.
        """
        run = self._run
        if run is None:
            return True
        try:
            if exit_code == STOPPED:
                run.mark_preempting()  # its state is preempted then, where it would be failed
            run.finish(exit_code=exit_code)
        except TimeoutError:
            self._warn("W&B did not take the last rows in time.")
        except Exception as error:
            self._recover(error, "W&B failed")
            self.open()
            return self._run is None
        else:
            self._replace_cut()
        if self._mode == "online":
            self._confirm(run)
        self._run = None
        teardown()  # waits for the end of wandb-core: `finish` returns before its file is written
        return True

    def _replace_cut(self) -> None:
        """The offline run that has ended began where those that were cut off began, so they are no longer needed."""
        self._cut = [folder for folder in self._cut if folder != self.folders[-1]]  # two of one second share a folder
        for folder in self._cut:
            shutil.rmtree(folder, ignore_errors=True)
        self.folders = [folder for folder in self.folders if folder not in self._cut]
        self._cut.clear()

    def _confirm(self, run: Any) -> None:
        """Asks the server for its rows: when it has refused some, `finish` returns as if nothing had happened."""
        deadline = time.monotonic() + CONFIRMING
        with contextlib.suppress(Exception):  # no answer, so nothing more is certain
            while (self.uploaded or 0) < self.next_row and time.monotonic() < deadline:
                self.uploaded = ask(run.entity, run.project, run.id, timeout=CONFIRMING).rows
                time.sleep(0.2)

    def abandon(self) -> None:
        """Ends a wandb-core that hangs (from another thread): whoever waits for it gets an error, and gives up."""
        self._abandoned, self._failures_left = True, 0
        self.wake()

    def wake(self) -> None:
        """Does what `abandon` does, but the session may open its run again."""
        for process in core_processes():
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself meanwhile
                os.kill(process, signal.SIGKILL)

    def _recover(self, error: Exception, what: str) -> None:
        if self._run is not None and self._mode == "offline":  # what its wandb-core had not written yet is lost
            self.next_row = self._first
            self._cut += self.folders[-1:]
        self._run = None
        self._failures_left = max(self._failures_left - 1, 0)
        if self._abandoned:
            what, error = "W&B did not answer until the end of the run", TimeoutError("it was ended")
        then = f"opening it again, {self._mode}" if self._failures_left else "giving up; the record of the run is whole"
        self._warn(f"{what} ({reason(error)}): {then}.")
        teardown()  # without it the next init says that the run is in use


def start(mode: Any, options: dict[str, Any], **settings: Any) -> Any:
    """`wandb.init` with our defaults, over them `settings`, over both the environment; every metric over `epoch`."""
    wandb = client()  # before init, which would ask for a key on a terminal and wait
    known = wandb.Settings.model_fields
    wanted = {**DEFAULTS, **settings}
    chosen = {key: wanted[key] for key in wanted if key in known and f"WANDB_{key.upper()}" not in os.environ}
    run = wandb.init(mode=mode, resume="allow", settings=wandb.Settings(silent=True, **chosen), **options)
    run.define_metric("*", step_metric="epoch")
    for name in BEST:
        run.define_metric(name, step_metric="epoch", summary="max,last")
    return run


def teardown() -> None:
    """Forgets wandb-core and its run: neither the next init nor the end of this process meets them again."""
    import wandb

    with contextlib.suppress(Exception, SystemExit):  # of what is got rid of; it exits as wandb-core did, say with -9
        wandb.teardown()


def core_processes() -> list[int]:
    """Ids of the wandb-core processes that this process started (Linux; elsewhere none are found)."""
    found = []
    for children in Path("/proc/self/task").glob("*/children"):
        try:
            for child in children.read_text().split():
                if b"wandb-core" in Path(f"/proc/{child}/cmdline").read_bytes():
                    found.append(int(child))
        except OSError:  # a thread or a child that ended meanwhile
            continue
    return found


def reason(error: Exception) -> str:
    """The first line of an error's message, without a full stop."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__

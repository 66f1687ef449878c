"""One W&B run that cannot hurt: when it fails it goes on offline, and when that fails too it gives up, with a warning.

W&B is imported here and nowhere else, and only when a session is made. Nothing here may be called from the training
thread: `init` may block for 40 s without a network, and every call may block for ever when wandb-core hangs.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gab.errors import UserError
from gab.tracking.config import TrackingConfig

MODES = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "disabled": "disabled"}
ATTEMPTS = {
    "online": ["online", "offline"],
    "offline": ["offline", "offline"],
}  # the second: a killed wandb-core
DEFAULTS: dict[str, Any] = {
    "console": "off",  # W&B would wrap stdout, so that a hanging wandb-core would stop whoever prints
    "init_timeout": 30,
    "finish_timeout": 60,
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
        warn: takes one sentence.
    """

    def __init__(self, mode: str, options: dict[str, Any], warn: Callable[[str], None]) -> None:
        self.folders: list[Path] = []  # one per opened run: W&B starts a new one whenever a run is opened again
        self.uploaded = False
        self.interrupted = False
        self.url: str | None = None
        self._modes = list(ATTEMPTS[mode])
        self._options = options
        self._warn = warn
        self._run: Any = None

    def open(self) -> None:
        """Starts the W&B run, or does without."""
        while self._modes and self._run is None:
            mode = self._modes.pop(0)
            try:
                self._run = _init(mode, self._options)
                self.url = self._run.url if mode == "online" else None
                self.folders.append(Path(self._run.settings.sync_dir))
            except Exception as error:
                self._recover(error, f"W&B {mode} did not start")

    def log(self, metrics: dict[str, float]) -> bool:
        """Logs one row; whether W&B took it."""
        while self._run is not None:
            try:
                self._run.log(metrics, commit=True)  # without: a row would wait for the next one
                return True
            except Exception as error:  # not only wandb.Error: a killed wandb-core is a ConnectionResetError
                self.interrupted = True
                self._recover(error, "W&B failed")
                self.open()
        return False

    def close(self, exit_code: int) -> None:
        """Ends the run; blocks until everything is uploaded, for `finish_timeout` at most."""
        run, self._run = self._run, None
        if run is None:
            return
        try:
            run.finish(exit_code=exit_code)
            self.uploaded = self.url is not None
        except Exception as error:
            self._warn(f"W&B did not finish ({_sentence(error)}).")
        _teardown()  # waits for the end of wandb-core: `finish` returns before its file is written

    def abandon(self) -> None:
        """Ends a wandb-core that hangs (from another thread): whoever waits for it gets an error."""
        self._modes.clear()
        self.wake()

    def wake(self) -> None:
        """Like `abandon`, but the session may open its run again."""
        for process in core_processes():
            os.kill(process, signal.SIGKILL)

    def _recover(self, error: Exception, what: str) -> None:
        self._run = self.url = None
        then = "going on offline" if self._modes else "giving it up; the record of the run is not affected"
        self._warn(f"{what} ({_sentence(error)}): {then}.")
        _teardown()  # without it the next init says that the run is in use


def _init(mode: Any, options: dict[str, Any]) -> Any:
    """`wandb.init` with our defaults (the environment beats them), and every metric over `epoch`."""
    import wandb

    # Honoured from 0.31 on; as a setting, older versions would refuse it. Unflushed rows are lost when a run is killed.
    os.environ.setdefault("WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL", "1")
    wandb.setup(settings=wandb.Settings(silent=True))  # before init, which would ask for a key on a terminal and wait
    known = wandb.Settings.model_fields
    free = [key for key in DEFAULTS if key in known and f"WANDB_{key.upper()}" not in os.environ]
    chosen = {key: DEFAULTS[key] for key in free}
    run = wandb.init(mode=mode, resume="allow", settings=wandb.Settings(silent=True, **chosen), **options)
    run.define_metric("*", step_metric="epoch")
    for name in ("eval/top1", "eval/top1_ema"):
        run.define_metric(name, step_metric="epoch", summary="max,last")
    return run


def _teardown() -> None:
    """Forgets wandb-core, so that neither the next init nor the end of this process waits for it."""
    import wandb

    with contextlib.suppress(Exception):  # the one that the caller is getting rid of
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


def _sentence(error: Exception) -> str:
    """The first line of an error's message, without a full stop."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__

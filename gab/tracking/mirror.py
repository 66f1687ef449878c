"""Mirrors the record of a run to W&B from a thread of its own, so that the dashboard can neither stop nor slow a run.

The thread follows the file: row n of the record is step n of W&B, and the run keeps one W&B id. So whatever W&B's
server lacks when the run is opened there, after an outage or a rollback, is sent from the record, and what it has is
not sent again. Offline there is no server to ask; there the rows of earlier starts count as sent.
W&B is allowed to fail, to hang and to die: see `gab.tracking.session` for what follows then.
"""

import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gab.tracking.config import TrackingConfig
from gab.tracking.forks import keep_apart
from gab.tracking.media import images
from gab.tracking.metrics import DashboardRows, metrics
from gab.tracking.session import Session, resolve_mode
from gab.tracking.wandb_run import find_id, options, read_sent, store_sent

HANGS_AFTER = 120.0  # seconds; longer than any call that W&B itself limits
CLOSING_LIMIT = 30.0  # seconds that the end of a run waits for W&B; a preempted job has about 120 s for everything
KILLING = 3.0  # seconds of these for ending a W&B that hangs


class Mirror:
    """A W&B run that follows the record of a run. Nothing but the constructor raises.

    Args:
        folder: the run's folder, with its record; W&B's files go below `wandb/` in it (or in WANDB_DIR).
        tracking: mode, project and so on; see TrackingConfig for what W&B's environment variables decide.
        config: the run's whole config as plain containers.
        variant, seed: also placed flat in W&B's config, since dashboards group badly by nested keys.
        name: the run's name.
        wandb_id: as the run's checkpoint knows it, should its file be lost.
        warn: takes one sentence; called in the thread that calls `update` and `finish`.
        active: False on every rank but 0.

    Raises:
        UserError: `tracking.wandb` or WANDB_MODE is not a mode.
    """

    def __init__(
        self,
        folder: Path,
        tracking: TrackingConfig,
        config: dict[str, Any],
        *,
        variant: str,
        seed: int,
        name: str,
        wandb_id: str | None = None,
        warn: Callable[[str], None],
        active: bool = True,
    ) -> None:
        self.id = wandb_id
        self._warn = warn
        self._warnings: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._changed = threading.Event()
        self._busy_since: float | None = None
        self._exit_code: int | None = None  # None: the run goes on
        self._folder = Path(folder)
        self._thread: threading.Thread | None = None
        self._mode = resolve_mode(tracking)
        if not active or self._mode == "disabled":
            return
        try:
            import wandb  # noqa: F401  (in this thread: imports in two threads at once can block each other)

            self.id = find_id(self._folder, known=wandb_id)
        except Exception as error:
            warn(f"No W&B ({error}): going on without it; the record of the run is not affected.")
            return
        chosen = options(self._folder, tracking, config, variant=variant, seed=seed, name=name, run_id=self.id)
        self._record = DashboardRows(self._folder / "record.jsonl")
        self._sent_before = read_sent(self._folder)
        self._session = Session(self._mode, chosen, self._sent_before.rows, self._warnings.put)
        keep_apart()
        self._thread = threading.Thread(target=self._work, name="wandb mirror", daemon=True)
        self._thread.start()

    def update(self) -> None:
        """Tells the mirror that the record has a new row. Returns at once."""
        if self._thread is None:
            return
        self._changed.set()
        now, since = time.monotonic(), self._busy_since
        if since is not None and now - since > HANGS_AFTER:
            self._busy_since = now  # opening the run again takes time too
            self._session.wake()
        self._pass_warnings()

    def finish(self, exit_code: int = 0, timeout: float | None = None) -> str | None:
        """Ends the W&B run, and says in one sentence where it is, what it lacks, and what completes it.

        None when there is no W&B run. Blocks for `timeout` seconds at most, by default CLOSING_LIMIT.
        """
        if self._thread is None:
            return None
        timeout = CLOSING_LIMIT if timeout is None else timeout
        thread, self._thread, self._exit_code = self._thread, None, exit_code
        self._changed.set()
        killing = min(KILLING, timeout / 2)
        thread.join(timeout - killing)
        if thread.is_alive():
            self._session.abandon()
            thread.join(killing)
        self._pass_warnings()
        try:
            return self._closing_sentence()
        except (OSError, ValueError) as error:
            return f"W&B: {self._folder} cannot be read ({error})."

    def _work(self) -> None:
        """The thread: everything that touches W&B."""
        self._busy_since = time.monotonic()
        try:
            self._session.open()
            while True:
                exit_code = self._exit_code  # read before the record is, as no row comes after it was set
                self._send()
                if exit_code is None:
                    self._busy_since = None
                    self._changed.wait()
                    self._changed.clear()
                elif self._session.close(exit_code):
                    break
        except (OSError, ValueError) as error:  # of the record
            self._warnings.put(f"W&B is given up, as {self._folder} cannot be read ({error}).")
            self._session.close(exit_code=1)

    def _send(self) -> None:
        """Brings W&B up to the record."""
        count, logged = self._record.count(), False
        while self._session.is_open and self._session.next_row < count:
            self._busy_since = time.monotonic()
            row = self._record[self._session.next_row]
            logged |= self._session.log({**metrics(row), **images(row, self._folder)})
        if logged:
            self._session.summarise(self._record.best)
            store_sent(self._folder, self._record, self._session.next_row)

    def _pass_warnings(self) -> None:
        while not self._warnings.empty():
            self._warn(self._warnings.get())

    def _closing_sentence(self) -> str:
        """Where the W&B run is, what is missing there, and what completes it."""
        session, rows, command = self._session, self._record.count(), f"python scripts/wandb_resync.py {self._folder}"
        if not self._sent_before.is_of(self._record):
            return (
                "W&B shows rows that the record no longer has, as the run was resumed with another run.log_every: "
                f"rebuild it with `{command} --new`."
            )
        if session.uploaded is not None and session.uploaded >= rows:
            return f"W&B: {session.url}."
        if session.uploaded is not None:
            lost = f"may lack the last {rows - session.uploaded} of {rows} rows"
            return f"W&B: {session.url} {lost}; send them with `{command}`."
        if self._mode == "online" or not session.folders:
            return f"W&B has received nothing of this start; send the run with `{command}`."
        lost = f", but for the last {rows - session.next_row} of {rows} rows" if session.next_row < rows else ""
        return f"W&B: kept in {session.folders[-1].parent}{lost}; send the run with `{command}`."

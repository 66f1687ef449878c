"""Mirrors the rows of a record to W&B from a thread of its own, so that the dashboard can neither stop nor slow a run.

`log` only queues. W&B is allowed to fail, to hang and to die: see `gab.tracking.session` for what follows then.
A run keeps one W&B id, in `wandb_id` of its folder, so that a resumed run goes on in the same W&B run. `wandb_logged`
beside it holds the last step that was mirrored: rows that a resumed run writes once more are not logged once more.
"""

import contextlib
import json
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gab.tracking.config import TrackingConfig
from gab.tracking.record import Row
from gab.tracking.session import Session, resolve_mode

AXES = ("epoch", "step", "samples", "gpu_hours")  # the same for every kind of row
PER_LAYER = ("sigma", "amplitude")
ID_FILE, LOGGED_FILE = "wandb_id", "wandb_logged"
QUEUE_ROWS = 10_000  # about 20 MB
HANGS_AFTER = 120.0  # seconds; longer than any call that W&B itself limits


class Mirror:
    """A W&B run that follows the record of a run. Nothing but the constructor raises.

    Args:
        folder: the run's folder; W&B's files go below `wandb/` in it (or in WANDB_DIR).
        tracking: mode, project and so on; see TrackingConfig for what W&B's environment variables decide.
        config: the run's whole config as plain containers.
        variant, seed: also placed flat in W&B's config, since dashboards group badly by nested keys.
        name: the run's name.
        warn: takes one sentence; called in the thread that calls `log` and `finish`.
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
        warn: Callable[[str], None],
        active: bool = True,
    ) -> None:
        self.id: str | None = None
        self.missing = 0  # rows that W&B did not take
        self._warn = warn
        self._warnings: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._rows: queue.Queue[Row | None] = queue.Queue(QUEUE_ROWS)
        self._busy_since: float | None = None
        self._exit_code = 0
        self._folder = Path(folder)
        self._thread: threading.Thread | None = None
        mode = resolve_mode(tracking)
        if not active or mode == "disabled":
            return
        try:
            import wandb  # noqa: F401  (in this thread: imports in two threads at once can block each other)

            self.id = _run_id(self._folder)
            self._logged = _read_logged(self._folder)
        except Exception as error:
            warn(f"No W&B ({error}): going on without it; the record of the run is not affected.")
            return
        options = _options(self._folder, tracking, {**config, "variant": variant, "seed": seed}, name, self.id)
        self._session = Session(mode, options, self._warnings.put)
        self._thread = threading.Thread(target=self._work, name="wandb mirror", daemon=True)
        self._thread.start()

    def log(self, row: Row) -> None:
        """Mirrors one row of the record. Returns at once."""
        if self._thread is None:
            return
        try:
            self._rows.put_nowait(row)
        except queue.Full:
            self.missing += 1
        now, since = time.monotonic(), self._busy_since
        if since is not None and now - since > HANGS_AFTER:
            self._busy_since = now  # opening the run again takes time too
            self._session.wake()
        self._pass_warnings()

    def finish(self, exit_code: int = 0, timeout: float = 90.0) -> str | None:
        """Ends the W&B run, blocking for little more than `timeout` seconds, and says in one sentence where it is.

        None when there is none.
        """
        if self._thread is None:
            return None
        thread, self._thread, self._exit_code = self._thread, None, exit_code
        try:
            self._rows.put(None, timeout=timeout / 2)
            thread.join(timeout)
        except queue.Full:  # it hangs, or never started
            pass
        if thread.is_alive():
            self._session.abandon()
            thread.join(5.0)
        self.missing += sum(row is not None for row in _drain(self._rows))
        self._pass_warnings()
        return self._closing_sentence()

    def _work(self) -> None:
        """The thread: everything that touches W&B."""
        self._busy_since = time.monotonic()
        self._session.open()
        self._busy_since = None
        while (row := self._rows.get()) is not None:
            self._busy_since = time.monotonic()
            self._mirror(row)
            self._busy_since = None
        self._session.close(self._exit_code)

    def _mirror(self, row: Row) -> None:
        values, kind, step = metrics(row), row["kind"], row.get("step", 0)
        if kind == "start" or not values or step <= self._logged.get(kind, -1):
            return
        if not self._session.log(values):
            self.missing += 1
            return
        self._logged[kind] = step
        with contextlib.suppress(OSError):  # at worst a resumed run shows a few points twice
            _replace(self._folder / LOGGED_FILE, json.dumps(self._logged))

    def _pass_warnings(self) -> None:
        for warning in _drain(self._warnings):
            self._warn(warning)

    def _closing_sentence(self) -> str:
        lost = f" {self.missing} rows of the record are missing there." if self.missing else ""
        if self._session.interrupted:
            lost += " The last rows before W&B failed may be missing there."
        folders = self._session.folders
        if not folders:
            return f"W&B has nothing of this run; {self._folder / 'record.jsonl'} is whole."
        if self._session.uploaded:
            return f"W&B: {self._session.url}.{lost}"
        pattern = folders[-1].parent / f"*run-*-{self.id}*"  # all starts of this run, offline and online
        online = "--include-online " if any(folder.name.startswith("run-") for folder in folders) else ""
        return f"W&B: kept in {folders[-1].parent}; upload with `wandb sync {online}{pattern}`.{lost}"


def metrics(row: Row) -> dict[str, float]:
    """The numbers of a row under the dashboard's names; what was not measured (null) is left out.

    `loss` of a train row is `train/loss`, of an eval row `eval/loss`; `sigma` of the first layer is `sigma/layer_01`,
    or `sigma/layer_01/head_01` ... where the row has a list per layer. |sigma| is shown: only its square has a meaning.
    """
    values: dict[str, float] = {}
    for field, value in row.items():
        if field in PER_LAYER:
            values.update(_per_layer(field, value))
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            values[field if field in AXES else f"{row['kind']}/{field}"] = value
    return values


def _per_layer(field: str, layers: list[Any] | None) -> Iterator[tuple[str, float]]:
    shown = abs if field == "sigma" else float
    for layer, value in enumerate(layers or [], start=1):
        key = f"{field}/layer_{layer:02d}"
        if isinstance(value, list):
            yield from ((f"{key}/head_{head:02d}", shown(item)) for head, item in enumerate(value, start=1))
        elif value is not None:
            yield key, shown(value)


def _options(folder: Path, tracking: TrackingConfig, config: dict[str, Any], name: str, run_id: str) -> dict[str, Any]:
    """Arguments of `wandb.init`; None leaves the choice to W&B's environment variable."""
    return {
        "id": run_id,
        "dir": os.environ.get("WANDB_DIR") or str(folder),
        "project": tracking.project or os.environ.get("WANDB_PROJECT") or "gab",
        "entity": tracking.entity,
        "group": tracking.group,
        "name": tracking.name or os.environ.get("WANDB_NAME") or name,
        "tags": tracking.tags or None,
        "notes": tracking.notes,
        "config": config,
    }


def _run_id(folder: Path) -> str:
    """The id of the run's first start: WANDB_RUN_ID or a new one, kept beside its checkpoints."""
    path = folder / ID_FILE
    if not path.exists():
        _replace(path, (os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)) + "\n")
    return path.read_text().strip()


def _read_logged(folder: Path) -> dict[str, int]:
    """The last mirrored step of each kind of row."""
    try:
        return json.loads((folder / LOGGED_FILE).read_text())
    except (OSError, ValueError):
        return {}


def _replace(path: Path, text: str) -> None:
    """Writes a small file so that a reader, or the next start, sees the old one or the new one."""
    aside = path.with_name(path.name + ".part")
    aside.write_text(text)
    aside.replace(path)


def _drain(waiting: Any) -> list[Any]:
    """Everything that is in a queue now."""
    items = []
    while True:
        try:
            items.append(waiting.get_nowait())
        except queue.Empty:
            return items

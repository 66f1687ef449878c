"""Brings the W&B run of a run's folder up to its record, or builds it anew from the record."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gab.errors import UserError
from gab.tracking.config import TrackingConfig
from gab.tracking.media import images
from gab.tracking.metrics import DashboardRows, metrics
from gab.tracking.record import read
from gab.tracking.session import reason, start, teardown
from gab.tracking.wandb_run import find_id, new_id, options, store_id, store_sent
from gab.tracking.wandb_server import ServerRun, ask
from gab.training.lock import RunLock
from gab.training.run_folder import read_config

REBUILT = "wandb_rebuilt"  # the folder of the offline run
UPLOADING = 600  # seconds for sending what is missing
CONFIRMING = 30  # seconds after which the server should count what it took


def resync(folder: Path, mode: str, *, new: bool = False) -> str:
    """Completes the W&B run of a run, and says in one sentence what was done. A second time changes nothing.

    Args:
        folder: of the run.
        mode: online sends the rows that the server lacks; offline writes all rows as an offline run of W&B.
        new: build the whole run under a new id, which is the run's from then on.

    Raises:
        UserError: it is no run, it is being trained, W&B does not answer or refuses, or its run cannot be completed.
    """
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} is not the folder of a run (it has no config.yaml): give one like runs/NAME")
    with RunLock(folder):
        source = _Source(folder)
        if mode == "offline":
            return _write_offline(source, new_id() if new else find_id(folder))
        return _send_all(source) if new else _send_missing(source, find_id(folder))


class _Source:
    """What the folder of a run knows.

    Raises:
        UserError: its record is empty or broken, or its config cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        rows = read(folder / "record.jsonl")
        first = next((row for row in rows if row["kind"] == "start"), None)
        if first is None:
            raise UserError(f"the record of {folder} has no start row, so there is nothing to send: train it first")
        self.folder = folder
        self.ended = rows[-1]["kind"] == "end"
        self.record = DashboardRows(folder / "record.jsonl")
        self.count = self.record.count()
        self._config = read_config(folder / "config.yaml")
        self._labels = {"variant": first["variant"], "seed": first["seed"]}

    def options(self, run_id: str) -> dict[str, Any]:
        """Arguments of `wandb.init`, as the run itself has them."""
        tracking = TrackingConfig(**self._config["tracking"])
        return options(self.folder, tracking, self._config, name=self.folder.name, run_id=run_id, **self._labels)


def _send_missing(source: _Source, run_id: str) -> str:
    chosen = source.options(run_id)
    with _no_answer_is_a_sentence(source.folder):
        before = ask(chosen["entity"], chosen["project"], run_id)
        if trouble := mismatch(before, source.record, ended=source.ended):
            raise UserError(f"{source.folder}: W&B's run {run_id} {trouble}")
        if before.rows == source.count:
            return f"{source.folder}: W&B has all {source.count} rows already: {before.url}"
        url = _send(source, start("online", chosen, finish_timeout=UPLOADING))
    return f"{source.folder}: sent {source.count - before.rows} of {source.count} rows, so W&B has all: {url}"


def _send_all(source: _Source) -> str:
    run_id, old = new_id(), find_id(source.folder)
    with _no_answer_is_a_sentence(source.folder):
        run = start("online", source.options(run_id), finish_timeout=UPLOADING)
        store_id(source.folder, run_id)  # should it fail from here on, it can be completed
        url = _send(source, run)
    return (
        f"{source.folder}: sent all {source.count} rows as a new W&B run: {url} "
        f"(the old one, {old}, is no longer used: delete it there)"
    )


def _send(source: _Source, run: Any) -> str:
    """Logs what an open run lacks, and ends it; returns the address of its page."""
    url, place = run.url, (run.entity, run.project, run.id)
    _log(source, run)
    deadline = time.monotonic() + CONFIRMING
    while (there := ask(*place).rows) < source.count:
        if time.monotonic() > deadline:
            raise UserError(
                f"{source.folder}: W&B has {there} of {source.count} rows so far: {url}; repeat the command in a few "
                "minutes, which sends what is missing then"
            )
        time.sleep(1)
    return url


def _log(source: _Source, run: Any) -> None:
    """Logs what a run lacks, with the summary and the figures, and ends it."""
    for number in range(run.starting_step, source.count):
        row = source.record[number]
        run.log({**metrics(row), **images(row, source.folder)}, step=number, commit=True)
    run.summary.update(source.record.best)
    for figure in sorted((source.folder / "figures").glob("*.png")):
        run.save(str(figure), base_path=str(source.folder), policy="now")
    run.finish(exit_code=0 if source.ended else 1)
    store_sent(source.folder, source.record, source.count)


def _write_offline(source: _Source, run_id: str) -> str:
    """Writes the whole run below `wandb_rebuilt/`, in place of what an earlier call has written there."""
    target = source.folder / REBUILT
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    run = start("offline", {**source.options(run_id), "dir": str(target)})
    path = Path(run.settings.sync_dir)
    _log(source, run)
    store_id(source.folder, run_id)
    return (
        f"{source.folder}: wrote all {source.count} rows; send them with `wandb sync {path}` (if W&B has a part of run "
        f"{run_id} already, write them with --new first)"
    )


def mismatch(server: ServerRun, record: DashboardRows, *, ended: bool) -> str | None:
    """Why the server's run cannot be completed by adding rows to it, and what helps; None if it can be."""
    rebuild = "W&B can only add rows at the end, so rebuild the run with --new"
    count = record.count()
    if server.lines != server.rows:
        return f"has {server.lines} rows up to step {server.rows - 1}, so some are missing or there twice: {rebuild}"
    for number, step in server.sample:
        if number < count and record[number].get("step") != step:
            mine = record[number].get("step")
            return f"differs from the record (row {number} is of step {step} there, of step {mine} here): {rebuild}"
    if server.rows > count and ended:
        return f"has {server.rows} rows and the record {count}: {rebuild}"
    if server.rows > count:
        return (
            f"has {server.rows} rows and the record {count}, as the run went back to a checkpoint: let it train on, "
            "after which they agree"
        )
    return None


@contextmanager
def _no_answer_is_a_sentence(folder: Path) -> Iterator[None]:
    """Whatever W&B's client raises tells that the server was not reached, or that it refused."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        teardown()  # of a run that is still open, which the next folder's `start` would return
        raise UserError(
            f"{folder}: W&B did not take the run ({reason(error)}): check your key (`wandb login`) and your network "
            "and repeat the command, or write it with --mode offline"
        ) from error

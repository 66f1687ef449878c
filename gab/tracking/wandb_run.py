"""Which W&B run belongs to a run's folder: its id, its settings, and how many rows it got."""

import contextlib
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gab.tracking.config import TrackingConfig
from gab.tracking.metrics import DashboardRows

ID_FILE, SENT_FILE = "wandb_id", "wandb_logged"


@dataclass(frozen=True)
class Sent:
    """What W&B was given, by all starts of a run: as many rows, the last of which was of that optimiser step."""

    rows: int = 0
    step: int = -1

    def is_of(self, record: DashboardRows) -> bool:
        """Whether the record still has that last row; not so when a run was resumed with another `run.log_every`."""
        return not 0 < self.rows <= record.count() or record[self.rows - 1].get("step") == self.step


def find_id(folder: Path, known: str | None = None) -> str:
    """The id that the run got at its first start: WANDB_RUN_ID or a new one, kept beside its checkpoints.

    Where the file was lost it is that of the checkpoint, `known`.
    """
    if not (folder / ID_FILE).exists():
        store_id(folder, known or os.environ.get("WANDB_RUN_ID") or new_id())
    return (folder / ID_FILE).read_text().strip()


def store_id(folder: Path, run_id: str) -> None:
    """Keep the run's W&B id in its folder."""
    _replace(folder / ID_FILE, run_id + "\n")


def new_id() -> str:
    """An id that no other run has."""
    return secrets.token_hex(4)


def read_sent(folder: Path) -> Sent:
    """Read what W&B was given before."""
    try:
        return Sent(**json.loads((folder / SENT_FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return Sent()


def store_sent(folder: Path, record: DashboardRows, rows: int) -> None:
    """W&B was given the first `rows` rows of the record."""
    with contextlib.suppress(OSError):  # at worst a run that is resumed offline shows a few points twice
        _replace(folder / SENT_FILE, json.dumps({"rows": rows, "step": record[rows - 1].get("step")}))


def project(tracking: TrackingConfig) -> str:
    """The name of W&B's project that a run goes to."""
    return tracking.project or os.environ.get("WANDB_PROJECT") or "gab"


def options(
    folder: Path,
    tracking: TrackingConfig,
    config: dict[str, Any],
    *,
    variant: str,
    seed: int,
    name: str,
    run_id: str,
) -> dict[str, Any]:
    """Arguments of `wandb.init`; None leaves the choice to W&B's environment variable."""
    return {
        "id": run_id,
        "dir": os.environ.get("WANDB_DIR") or str(folder),
        "project": project(tracking),
        "entity": tracking.entity,
        "group": tracking.group,
        "name": tracking.name or os.environ.get("WANDB_NAME") or name,
        "tags": tracking.tags or None,
        "notes": tracking.notes,
        "config": {**config, "variant": variant, "seed": seed},
    }


def _replace(path: Path, text: str) -> None:
    """Writes a small file so that a reader, or the next start, sees the old one or the new one."""
    aside = path.with_name(path.name + ".part")
    aside.write_text(text)
    aside.replace(path)

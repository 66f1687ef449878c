"""Figures of a run as media of its dashboard."""

import contextlib
from pathlib import Path
from typing import Any

from gab.tracking.record import Row


def images(row: Row, folder: Path) -> dict[str, Any]:
    """The figures that a row names, by `figures/NAME`, as W&B takes them; those that cannot be read are left out.

    Args:
        folder: of the run, from which the row's paths lead.
    """
    import wandb

    found = {}
    for name, path in row.get("figures", {}).items():
        with contextlib.suppress(Exception):  # gone or damaged: a dashboard without it is better than none
            found[f"figures/{name}"] = wandb.Image(str(folder / path))
    return found

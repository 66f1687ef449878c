"""The table of a run's scores: a CSV file with one row per checkpoint, weights and setting, filled by and by."""

import csv
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gab.training.interfaces import DataSettings

# What tells rows apart. What an evaluation finds again takes the place of what was there.
KEYS = (
    *("checkpoint", "weights", "epoch", "step", "data", "split", "drawn"),
    *("image_size", "crop", "interpolation", "precision"),
)


def row_of(data: DataSettings, **others: Any) -> dict[str, Any]:
    """The key of a row; `data` gives the name of the data set, how it is split and its evaluation transform."""
    found = {
        "data": data.name,
        "drawn": drawn(data, others["split"]),
        "image_size": data.image_size,
        "crop": f"{data.eval_crop:g}",
        "interpolation": data.eval_interpolation,
        **others,
    }
    return {key: found[key] for key in KEYS}


def drawn(data: DataSettings, split: str) -> str:
    """How the images of `split` were drawn, with the seed: `pooled-0`, `holdout-0.01-0`; nothing where as published."""
    parts = [] if data.split == "official" else [data.split]
    parts += [f"holdout-{data.holdout:g}"] if data.holdout else []
    parts += [f"fraction-{data.fraction:g}"] if data.fraction < 1 and split == "train" else []
    return "-".join([*parts, str(data.split_seed)]) if parts else ""


def enter(path: Path, key: dict[str, Any], numbers: dict[str, float]) -> None:
    """Enter `numbers` into the row of `key`, which is added if there is none; other columns and rows stay.

    Evaluations that end at the same time wait for one another.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path):
        _rewrite(path, key, numbers)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock of the file `path`. The system frees a killed process's; where it has none, nobody waits."""
    with path.with_name(f".{path.name}.lock").open("a") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _rewrite(path: Path, key: dict[str, Any], numbers: dict[str, float]) -> None:
    """The file anew, with the row of `key`: whole, or not at all."""
    rows = _read(path)
    texts = {name: "" if value is None else str(value) for name, value in key.items()}
    row = next((row for row in rows if texts.items() <= row.items()), None)
    if row is None:
        rows.append(row := texts)
    row["date"] = datetime.now(UTC).isoformat(timespec="seconds")
    row |= {name: str(value) if isinstance(value, int) else f"{value:.5f}" for name, value in numbers.items()}
    columns = [*KEYS, "date", *dict.fromkeys(name for row in rows for name in row if name not in (*KEYS, "date"))]
    aside = path.with_name(f".{path.name}.part")
    with aside.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    aside.replace(path)


def _read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))

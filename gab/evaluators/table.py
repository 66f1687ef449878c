"""The table of a run's scores: a CSV file with one row per checkpoint, weights and setting, filled by and by."""

import csv
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# What tells rows apart. What an evaluation finds again takes the place of what was there.
KEYS = ("checkpoint", "weights", "epoch", "step", "data", "split", "image_size", "crop", "interpolation", "precision")


def row_of(data: Any, **others: Any) -> dict[str, Any]:
    """The key of a row; `data` gives the name of the data set and its evaluation transform."""
    found = {
        "data": data.name,
        "image_size": data.image_size,
        "crop": f"{data.eval_crop:g}",
        "interpolation": data.eval_interpolation,
        **others,
    }
    return {key: found[key] for key in KEYS}


def enter(path: Path, key: dict[str, Any], numbers: dict[str, float]) -> None:
    """Enter `numbers` into the row of `key`, which is added if there is none; other columns and rows stay."""
    rows = _read(path)
    texts = {name: "" if value is None else str(value) for name, value in key.items()}
    row = next((row for row in rows if texts.items() <= row.items()), None)
    if row is None:
        rows.append(row := texts)
    row["date"] = datetime.now(UTC).isoformat(timespec="seconds")
    row |= {name: str(value) if isinstance(value, int) else f"{value:.5f}" for name, value in numbers.items()}
    columns = [*KEYS, "date", *dict.fromkeys(name for row in rows for name in row if name not in (*KEYS, "date"))]
    path.parent.mkdir(parents=True, exist_ok=True)
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

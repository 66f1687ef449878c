"""The tables of results/, and what their numbers depend on."""

import csv
import os
import platform
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def circumstances(command: str, packages: list[str]) -> dict[str, Any]:
    """What the numbers depend on; `command` makes them again."""
    return {
        "command": command,
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "date": date.today().isoformat(),
    }


def cpu_name() -> str:
    """The processor's model name, or its architecture where the system does not tell."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """The rows as CSV, with the columns of the first one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def update_table(path: Path, rows: list[dict[str, Any]], key: tuple[str, ...]) -> None:
    """Puts the rows, if any, into a table, in place of older ones with the same `key`; what a row lacks is empty."""
    if not rows:
        return
    told = {tuple(str(row[column]) for column in key) for row in rows}
    kept: list[dict[str, Any]] = []
    if path.exists():
        with path.open(newline="") as file:
            kept = [row for row in csv.DictReader(file) if tuple(row.get(c, "") for c in key) not in told]
    columns = dict.fromkeys([*rows[0], *(column for row in kept for column in row)])
    write_table(path, [dict.fromkeys(columns, "") | row for row in (*kept, *rows)])

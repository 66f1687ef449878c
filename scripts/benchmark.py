"""What the benchmarks share: measurements in processes of their own, and the circumstances in every row."""

import csv
import json
import os
import platform
import subprocess
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def in_a_process(script: str, *arguments: str) -> Any:
    """The last line that `script arguments` prints in a new process, read as JSON."""
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


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
    """The rows as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)

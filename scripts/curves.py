"""Curves of runs as one table: `python scripts/curves.py TABLE runs/A runs/B ...`, a line for every evaluation of all.

Each line has the run's network, data set and seed, what the evaluation found (percent), the training loss of the last
row before it, and where the run comes from: commit, command (folders left out), processor, cores, GPU and date. Of a
run that went on with another commit or on another machine, all are named, in order.
"""

import argparse
import json
import re
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that the script also runs where the project is not installed

from omegaconf import OmegaConf

from conf.errors import sentences
from gab.errors import UserError
from gab.tracking.record import read
from scripts.bench.tables import write_table

MEASURED = ("epoch", "step", "samples", "top1", "top5", "loss", "top1_ema", "top5_ema", "loss_ema")


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, metavar="TABLE", help="to write, such as results/curves_NAME.csv")
    parser.add_argument("runs", type=Path, nargs="+", metavar="runs/NAME", help="folders of runs")
    given = parser.parse_args(arguments)
    with sentences():
        write(given.table, given.runs)


def write(table: Path, folders: list[Path]) -> None:
    """Write the table; raises UserError for a folder without a finished evaluation."""
    rows = [row for folder in folders for row in curve(folder)]
    write_table(table, rows)
    print(f"{table}: {len(rows)} evaluations of {len(folders)} runs")


def curve(folder: Path) -> list[dict[str, Any]]:
    """A line for every evaluation of the run in `folder`, in order."""
    record, provenance = folder / "record.jsonl", folder / "provenance.json"
    rows = read(record) if record.is_file() and provenance.is_file() else []
    if not any(row["kind"] == "eval" for row in rows):
        raise UserError(f"{folder} is not the folder of a run that has evaluated once: give such folders")
    start, origin = rows[0], came_from(json.loads(provenance.read_text()))
    config = OmegaConf.load(folder / "config.yaml")
    run = {"variant": start["variant"], "data": config.data.name, "seed": start["seed"]}
    lines, train_loss = [], None
    for row in rows:
        if row["kind"] == "train":
            train_loss = row["loss"]
        if row["kind"] == "eval":
            measured = {name: row.get(name) for name in MEASURED}
            lines.append({**run, **measured, "train_loss": train_loss, **origin})
    return lines


def came_from(starts: list[dict[str, Any]]) -> dict[str, str]:
    """Commits (with a plus where it was changed) and hardware of a run's starts; command and date of the first."""
    hardware = [start["hardware"] for start in starts]
    return {
        "commit": different(f"{start['commit']}{'+' if start['uncommitted'] else ''}" for start in starts),
        "command": command(starts[0]["command"]),
        "cpu": different(each["cpu"] for each in hardware),
        "cores": different(str(each["usable_cores"]) for each in hardware),
        "gpu": different(" ".join(gpu["name"] for gpu in each["gpus"]) for each in hardware),
        "date": starts[0]["time"].partition("T")[0],
    }


def different(values: Iterable[str]) -> str:
    """The values that differ, in order."""
    return ", then ".join(dict.fromkeys(values))


def command(line: str) -> str:
    """A command as others would give it: python by its name, and FOLDER for folders of this machine."""
    words = shlex.split(line)
    script = next(i for i, word in enumerate(words) if word.endswith(".py"))
    settings = [re.sub(r"=[~/].*", "=FOLDER", word) for word in words[script + 1 :]]
    return shlex.join(["python", Path(words[script]).name, *settings])


if __name__ == "__main__":
    main()

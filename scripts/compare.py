"""Several runs, with mean and spread: `python scripts/compare.py OUT runs/A runs/B ...`

Runs that differ in the seed alone make a group. Writes OUT/comparison.csv, a line for each group: mean and sample
standard deviation of the last epoch's scores on the validation images, and on the test images where there are some.
The best come first, by the metric of their data set (`data.metric`) on the validation images.
"""

import argparse
import csv
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that the script also runs where the project is not installed

from omegaconf import OmegaConf  # noqa: E402

from conf.errors import sentences  # noqa: E402
from gab.errors import UserError  # noqa: E402
from gab.tracking.record import read  # noqa: E402
from gab.training.run_folder import essential  # noqa: E402

SCORES = [
    split + name for split in ("", "test_") for name in ("top1", "top1_ema", "mean_per_class", "mean_per_class_ema")
]


@dataclass(frozen=True)
class Ended:
    """A run that came to its end: what may change results, its seed and its last row."""

    settings: dict[str, Any]
    seed: int
    row: dict[str, Any]


def main(arguments: list[str] | None = None) -> None:
    """Print the comparison and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of comparison.csv")
    parser.add_argument("runs", type=Path, nargs="+", metavar="runs/NAME", help="folders of runs")
    given = parser.parse_args(arguments)
    with sentences():
        write(given.out, given.runs)


def write(out: Path, folders: list[Path]) -> None:
    """Writes OUT/comparison.csv and prints it; raises UserError where no run has ended."""
    runs = []
    for folder in folders:
        run = ended(folder)
        if run is None:
            print(f"left out, as it has not come to its end: {folder}")
        else:
            runs.append(run)
    if not runs:
        raise UserError("no run has come to its end, so there is nothing to compare: train them to the end")
    rows = compare(runs)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "comparison.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    print((out / "comparison.csv").read_text(), end="")


def ended(folder: Path) -> Ended | None:
    """The run of a folder, None if it has not come to its end."""
    record = folder / "record.jsonl"
    rows = read(record) if record.is_file() else []
    if not rows or rows[-1]["kind"] != "end":
        return None
    config: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))  # type: ignore[assignment]
    settings = essential(config)
    return Ended(settings, settings.pop("seed"), rows[-1])


def compare(runs: list[Ended]) -> list[dict[str, Any]]:
    """A row for each group of runs with equal settings, best mean of their metric first."""
    groups: dict[str, list[Ended]] = {}
    for run in runs:
        groups.setdefault(repr(sorted(run.settings.items())), []).append(run)
    keys = sorted({key for run in runs for key in run.settings})
    first = [group[0].settings for group in groups.values()]
    differing = [key for key in keys if len({repr(settings.get(key)) for settings in first}) > 1]
    scores = [name for name in SCORES if any(name in run.row for run in runs)]
    return [row(group, differing, scores) for group in sorted(groups.values(), key=headline, reverse=True)]


def headline(group: list[Ended]) -> float:
    """The group's mean of what its data set is judged by (percent)."""
    metric = group[0].settings.get("data.metric", "top1")
    return mean(run.row[metric] for run in group)


def row(group: list[Ended], differing: list[str], names: list[str]) -> dict[str, Any]:
    """What tells the group from the others, its seeds, and mean and spread of its scores (percent)."""
    settings = {key: group[0].settings.get(key) for key in differing}
    seeds = " ".join(map(str, sorted(run.seed for run in group)))
    scores: dict[str, Any] = {}
    for name in names:
        values = [run.row[name] for run in group if name in run.row]
        scores[f"{name}_mean"] = round(mean(values), 3) if values else None
        scores[f"{name}_std"] = round(stdev(values), 3) if len(values) > 1 else None
    return {**settings, "runs": len(group), "seeds": seeds, **scores}


if __name__ == "__main__":
    main()

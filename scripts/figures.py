"""Figures of several runs side by side:

    figures.py bias runs/A runs/B    how σ and A of every layer moved from their start, and where they ended

OUT gets bias_over_time and bias_by_layer as PNG and PDF, and bias.csv with every number. What `train.py` and `eval.py`
draw of one network is in docs/figures.md.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that the script also runs where the project is not installed

from conf.errors import sentences
from gab.evaluators.csv_file import write_csv
from gab.tracking.figure_files import save
from gab.tracking.figures_of_runs import changes_by_layer, changes_over_time, check, rows_of_runs
from gab.tracking.record import read


def main(arguments: list[str] | None = None) -> None:
    """The command line; what a user can get wrong ends in one sentence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("bias",))
    parser.add_argument("runs", type=Path, nargs="+", metavar="runs/NAME", help="folders of runs")
    parser.add_argument("--out", type=Path, default=Path("runs/figures"), help="(default: %(default)s)")
    given = parser.parse_args(arguments)
    with sentences():
        bias(given.runs, given.out)


def bias(folders: list[Path], out: Path) -> None:
    """σ and A of the runs in `folders`."""
    names = [folder.resolve().name for folder in folders]
    unique = len(set(names)) == len(names)
    records = {
        name if unique else str(folder): read(folder / "record.jsonl")
        for name, folder in zip(names, folders, strict=True)
    }
    check(records)
    files = [*save(changes_over_time(records), out / "bias_over_time")]
    files += save(changes_by_layer(records), out / "bias_by_layer")
    write_csv(out / "bias.csv", list(rows_of_runs(records)))
    print(f"{', '.join(map(str, files))} and {out / 'bias.csv'}")


if __name__ == "__main__":
    main()

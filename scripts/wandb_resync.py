"""Send W&B what it lacks of runs, from their records: `python scripts/wandb_resync.py runs/NAME [runs/OTHER ...]`."""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that the script also runs where the project is not installed

from conf.errors import sentences
from gab.errors import UserError
from gab.tracking.resync import resync

NEW_HELP = "build each run anew under a new id, which it then keeps: for a W&B run that cannot be completed"


def main(arguments: list[str] | None = None) -> None:
    """Say in a sentence for each run what was done; exit code 2 when one of them could not be completed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="runs/NAME", help="folders of runs")
    parser.add_argument(
        "--mode", choices=["online", "offline"], default="online", help="offline: write a run for `wandb sync`"
    )
    parser.add_argument("--new", action="store_true", help=NEW_HELP)
    given = parser.parse_args(arguments)
    failed = 0
    with sentences():
        for folder in given.runs:
            try:
                print(resync(folder, given.mode, new=given.new), flush=True)
            except UserError as error:
                failed += 1
                print(f"error: {error}", file=sys.stderr, flush=True)
    if failed:
        raise SystemExit(2)


if __name__ == "__main__":
    main()

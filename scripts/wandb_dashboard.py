"""Save a W&B view that compares runs: `python scripts/wandb_dashboard.py --project P --where data.name=imagenet`."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that the script also runs where the project is not installed

from conf.errors import sentences
from gab.errors import UserError
from gab.tracking import dashboard

WHERE_HELP = (
    "show only runs with one of these values of a setting, as in data.name=imagenet train.epochs=300: a mean over runs "
    "that differ in more than their seed says little"
)


def main(arguments: list[str] | None = None) -> None:
    """Save the view and print its address, or print what would be saved."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--project", required=True, help="of W&B, as in tracking.project")
    parser.add_argument("--entity", help="user or team (default: that of the account)")
    parser.add_argument("--name", default=dashboard.NAME, help="of the view (default: %(default)s)")
    parser.add_argument("--where", nargs="+", default=[], metavar="KEY=A,B", help=WHERE_HELP)
    parser.add_argument("--dry", action="store_true", help="print the view as JSON; asks nobody, saves nothing")
    given = parser.parse_args(arguments)
    with sentences():
        settings = {"name": given.name, "where": dict(map(allowed, given.where))}
        if given.dry:
            print(dashboard.spec(dashboard.workspace(given.project, given.entity or "", **settings)))
        else:
            print(dashboard.save(given.project, given.entity, **settings))


def allowed(word: str) -> tuple[str, list[Any]]:
    """A setting and its values; raises UserError where there are none."""
    key, _, values = word.partition("=")
    if not key or not values:
        raise UserError(f"--where {word}: write KEY=VALUE or KEY=A,B")
    return key, [read(value) for value in values.split(",")]


def read(value: str) -> Any:
    """A number, true, false or null; else text."""
    try:
        return json.loads(value)
    except ValueError:
        return value


if __name__ == "__main__":
    main()

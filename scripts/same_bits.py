"""Whether two runs ended alike in every bit: `python scripts/same_bits.py runs/A runs/B`.

Weights, averaged weights, optimiser and counters of their checkpoints, the record without what tells of time, and the
predictions. Prints the first differences; the exit code is 1 if there are any.
"""

import argparse
import sys
from itertools import islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that the script also runs where the project is not installed

import numpy as np
import torch

from conf.errors import sentences
from gab.tracking.record import read
from gab.training import checkpoint

CHECKPOINTS = ("last.pt", "best.pt")
# Of time, of the place, and of when and where it was made; `record` counts bytes, among them those of times.
ROW_APART = {"images_per_second", "data_wait", "mfu", "process_hours", "gpu_hours", "commit"}
CHECKPOINT_APART = {"seconds", "waited", "record", "wandb_id", "config"}
SHOWN = 10


def differences(first: Path, second: Path) -> list[str]:
    """What differs between two run folders, one line each, with the values of `first` before those of `second`.

    Raises:
        UserError: a checkpoint or record is missing or cannot be read.
    """
    found = []
    for name in CHECKPOINTS:
        contents = [_without(checkpoint.load(run / "checkpoints" / name), CHECKPOINT_APART) for run in (first, second)]
        found += _compare(name, *contents)
    rows = [_without(read(run / "record.jsonl"), ROW_APART) for run in (first, second)]
    return found + _compare("record.jsonl", *rows) + _compare("predictions.npz", *map(_predictions, (first, second)))


def _predictions(run: Path) -> dict[str, Any]:
    path = run / "predictions.npz"
    if not path.is_file():
        return {}
    with np.load(path) as arrays:
        return dict(arrays)


def _without(value: Any, names: set[str]) -> Any:
    """`value` without the entries of these names, at any depth."""
    if isinstance(value, dict):
        return {key: _without(item, names) for key, item in value.items() if key not in names}
    return [_without(item, names) for item in value] if isinstance(value, list) else value


def _compare(place: str, first: Any, second: Any) -> list[str]:
    """Every place at which two values differ."""
    if isinstance(first, dict) and isinstance(second, dict):
        keys = list(first | second)
        return [line for key in keys for line in _compare(f"{place} {key}", first.get(key), second.get(key))]
    if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        return [
            line for i, pair in enumerate(zip(first, second, strict=True)) for line in _compare(f"{place} {i}", *pair)
        ]
    return [] if _same(first, second) else [f"{place}: {_shown(first)} and {_shown(second)}"]


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        same_type = (first.dtype, first.shape) == (second.dtype, second.shape)
        return same_type and torch.equal(*(tensor.reshape(-1).view(torch.uint8) for tensor in (first, second)))
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        return (first.dtype, first.shape, first.tobytes()) == (second.dtype, second.shape, second.tobytes())
    return repr(first) == repr(second)  # NaN is itself, and 0.0 is not -0.0


def _shown(value: Any) -> str:
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return f"{value.dtype} {tuple(value.shape)} {value.reshape(-1)[:3].tolist()}..."
    return f"{len(value)} entries" if isinstance(value, list) else repr(value)


def main() -> None:
    """Compare, print, and tell by the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs=2, metavar="RUN", help="folder of a run")
    first, second = parser.parse_args().runs
    with sentences():
        found = differences(first, second)
    for line in islice(found, SHOWN):
        print(line)
    if found:
        sys.exit(f"{first} and {second} differ in {len(found)} places")
    print(f"{first} and {second} are equal in every bit")


if __name__ == "__main__":
    main()

"""What a run writes of its evaluations: fields of the record, where averaged weights are `_ema`, and its own table."""

from collections.abc import Iterable
from pathlib import Path

from gab.evaluators import table
from gab.evaluators.accuracy import Scores
from gab.evaluators.base import Results, flat
from gab.training.interfaces import DataSettings

NAMES = {"top1": "top1", "top5": "top5", "mean_per_class": "mean_per_class", "log_loss": "loss"}  # in the record


def suffix(weights: str) -> str:
    """What tells the fields of averaged weights from those of raw ones."""
    return "" if weights == "raw" else f"_{weights}"


def own_fields(found: dict[str, Scores]) -> dict[str, float]:
    """The scores of the validation images, by the kind of weights, as fields of an `eval` row."""
    return {
        field + suffix(weights): getattr(scores, name)
        for weights, scores in found.items()
        for name, field in NAMES.items()
    }


def fields(results: Results) -> dict[str, float]:
    """What the other evaluators found as fields of an `evaluate` row; counts are given once."""
    found: dict[str, float] = {}
    for weights, by_evaluator in results.items():
        for name, value in flat(by_evaluator.items()).items():
            found[name if name.endswith("_images") else name + suffix(weights)] = value
    return found


def figures(results: Results, root: Path) -> dict[str, str]:
    """The PNG files below `root` that were drawn, by their names, where averaged weights are `_ema`."""
    files = [file for one in results.values() for result in one.values() for file in result.files]
    return {file.stem: str(file.relative_to(root)) for file in files if file.suffix == ".png"}


def enter(
    path: Path,
    data: DataSettings,
    own: dict[str, float],
    results: Results,
    *,
    weights: Iterable[str],
    images: int,
    checkpoint: str = "last.pt",
    split: str = "val",
    **progress: int,
) -> None:
    """Enter the final scores into the table `path` of the run, as `eval.py` does for a checkpoint.

    Args:
        data: the section of the config.
        own: the fields of the data set's own images, `images` of them.
        progress: epoch and step.
    """
    for kind in weights:
        key = table.row_of(data, checkpoint=checkpoint, weights=kind, split=split, precision="fp32", **progress)
        numbers = {name: own[field + suffix(kind)] for name, field in NAMES.items()} | {"images": images}
        table.enter(path, key, numbers | flat(results.get(kind, {}).items()))

"""A finished run as a comparison sees it: its settings, its seeds, its scores, and what it predicted."""

import math
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

from gab.errors import UserError
from gab.tracking.record import Row, read
from gab.training.run_folder import essential, read_config

SEEDS = ("seed", "data.split_seed")  # what tells the runs of an arm from each other


class Unfinished(UserError):
    """A folder without a finished run: it can be left out."""


class NoRun(Unfinished):
    """What `runs/*` brings besides runs: a file, or a folder in which none has begun."""


class Predicted(NamedTuple):
    """Per validation image, in the order of the split, of the last weights."""

    image: np.ndarray  # (n,) names
    label: np.ndarray  # (n,) int64
    right: np.ndarray  # (n,) bool
    log_loss: np.ndarray  # (n,) float32


@dataclass(frozen=True)
class Run:
    """A run that came to its end.

    Attributes:
        config: all settings, flat: `a.b.c: value`.
        settings: those that may change results, without the seeds.
        rows: its record.
    """

    folder: Path
    config: dict[str, Any]
    settings: dict[str, Any]
    rows: list[Row]

    @property
    def seed(self) -> tuple[int, int]:
        """`seed` and `data.split_seed`."""
        return self.config["seed"], self.config.get("data.split_seed") or 0

    @property
    def start(self) -> Row:
        """The first row, empty in a record that has lost it."""
        return self.rows[0] if self.rows[0]["kind"] == "start" else {}

    @property
    def end(self) -> Row:
        return self.rows[-1]

    @property
    def variant(self) -> str:
        """The network's name with its switches."""
        return self.start.get("variant") or str(self.config.get("model.base", self.folder.name))

    def all(self, kind: str) -> list[Row]:
        return [row for row in self.rows if row["kind"] == kind]

    @cached_property
    def images(self) -> list[str]:
        """The digest of the images of every epoch, with their crops and flips."""
        return [row["images_digest"] for row in self.rows if row.get("images_digest")]

    @property
    def rate(self) -> float | None:
        """Training images per second: the median of its rows, as the first is slow."""
        rates = [row["images_per_second"] for row in self.all("train") if row.get("images_per_second")]
        return median(rates) if rates else None

    @cached_property
    def predicted(self) -> Predicted | None:
        """What its raw weights said of every validation image at the end; None if that was not kept.

        Raises:
            UserError: the file is not of this run's end.
        """
        path = self.folder / "predictions.npz"
        if not path.is_file():
            return None
        try:
            with np.load(path) as file:
                label, top5 = file["label"], file["top5"]
                found = Predicted(file["image"], label, top5[:, 0] == label, file["log_loss"])
        except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error) as error:
            raise UserError(f"{path} cannot be read ({error}): evaluate the run again, or remove the file") from error
        if not math.isclose(100 * found.right.mean(), self.end.get("top1", math.nan), abs_tol=1e-6):
            raise UserError(f"{path} does not have the top-1 of the run's last row: it is of another run; remove it")
        return found


def load(folder: Path) -> Run:
    """The run in `folder`.

    Raises:
        NoRun: there is none, or it has not begun.
        Unfinished: it has not come to its end.
        UserError: the folder does not exist, a line of the record is broken, or the config cannot be read.
    """
    record, stored = folder / "record.jsonl", folder / "config.yaml"
    if not folder.exists():
        raise UserError(f"{folder} does not exist: correct its name, or train it first")
    missing = [path.name for path in (record, stored) if not path.is_file()]
    if len(missing) == 2:
        raise NoRun(f"{folder} has neither record.jsonl nor config.yaml, so it is no run or has not begun")
    if missing:
        raise Unfinished(f"{folder} has no {missing[0]}, so it has not begun or was not copied whole")
    rows = read(record)
    if not rows or rows[-1]["kind"] != "end":
        epoch = next((row["epoch"] for row in reversed(rows) if "epoch" in row), 0)
        raise Unfinished(f"{folder} has not come to its end (its record stops at epoch {epoch:.4g})")
    config = read_config(stored)
    if "seed" not in config:
        raise UserError(f"{stored} has no seed, so it is not the config of a run: restore it")
    settings = essential(config)
    return Run(folder, _flat(config), {k: v for k, v in settings.items() if k not in SEEDS}, rows)


def _flat(config: dict[str, Any], path: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{path}{key}"
        found |= _flat(value, f"{name}.") if isinstance(value, dict) and value else {name: value}
    return found


@dataclass(frozen=True)
class Endpoint:
    """The number of a run that is compared.

    Attributes:
        field: of the record: `top1`, `loss`, `test_top1`, `top1_ema`, ...
        last: 1 for the last row, k for the mean of the last k evaluations.
    """

    field: str
    last: int = 1

    @property
    def is_loss(self) -> bool:
        """Whether less is better; in nats, where the others are in points (percent)."""
        return "loss" in self.field

    @property
    def unit(self) -> str:
        return "nats" if self.is_loss else "points"

    @property
    def name(self) -> str:
        return self.field if self.last == 1 else f"{self.field}, mean of the last {self.last} evaluations"

    @property
    def words(self) -> str:
        """For a sentence: `validation top-1`, `test mean per class of the averaged weights`."""
        bare = self.field.removeprefix("test_").removesuffix("_ema")
        split = "test" if self.field.startswith("test_") else "validation"
        name = {"top1": "top-1", "top5": "top-5", "loss": "log-loss"}.get(bare, bare.replace("_", " "))
        weights = " of the averaged weights" if self.field.endswith("_ema") else ""
        return f"{split} {name}{weights}" + (f", mean of the last {self.last} evaluations" if self.last > 1 else "")

    def of(self, run: Run) -> float:
        """The run's number; raises UserError where it has none."""
        rows = [run.end] if self.last == 1 else run.all("eval")[-self.last :]
        values = [row.get(self.field) for row in rows]
        if len(values) < self.last:
            raise UserError(f"{run.folder} has {len(values)} evaluations: lower --last, or set train.eval_every=1")
        if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in values):
            have = sorted(k for k, value in rows[-1].items() if isinstance(value, float) and math.isfinite(value))
            raise UserError(f"{run.folder} has no finite {self.field} there: take --endpoint of {', '.join(have)}")
        return float(np.mean(values))  # type: ignore[arg-type]

    def by_image(self, run: Run) -> np.ndarray | None:
        """Its part of every validation image, (n,): their mean is the run's number; None if that is not kept."""
        if self.last != 1 or self.field not in ("top1", "loss") or run.predicted is None:
            return None
        return run.predicted.log_loss.astype(float) if self.is_loss else 100.0 * run.predicted.right


def default_endpoint(runs: list[Run], last: int) -> Endpoint:
    """What the data set is judged by, or top-1 for several that differ in it; of test images where all have some."""
    metrics = {run.settings.get("data.metric", "top1") for run in runs}
    metric = metrics.pop() if len(metrics) == 1 else "top1"
    tested = last == 1 and all(f"test_{metric}" in run.end for run in runs)
    return Endpoint(f"test_{metric}" if tested else metric, last)

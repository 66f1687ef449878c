"""The table of scores: what makes a row, and that none is lost."""

import csv
import errno
import fcntl
from itertools import chain
from multiprocessing.synchronize import Barrier
from pathlib import Path
from types import SimpleNamespace

import pytest

from gab.evaluators import table
from tests.fresh import FRESH

SPLITS = {"split": "official", "holdout": 0.0, "fraction": 1.0, "split_seed": 0}
DATA = SimpleNamespace(name="imagenet", image_size=224, eval_crop=0.9, eval_interpolation="bicubic", **SPLITS)


def key(weights: str = "raw", step: int | None = 100, **changes: object) -> dict:
    data = SimpleNamespace(**(vars(DATA) | changes))
    return table.row_of(
        data, checkpoint="last.pt", weights=weights, epoch=None, step=step, split="val", precision="fp32"
    )


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_one_row_per_checkpoint_weights_and_setting(tmp_path: Path) -> None:
    path = tmp_path / "eval" / "scores.csv"
    table.enter(path, key(), {"top1": 80.0, "images": 50_000})
    table.enter(path, key("ema"), {"top1": 81.0, "images": 50_000})
    table.enter(path, key(), {"v2_top1": 69.123456, "v2_images": 10_000})  # another set, later
    table.enter(path, key(), {"top1": 80.5, "images": 50_000})  # the same again
    table.enter(path, key(image_size=384), {"top1": 82.0})
    table.enter(path, key(step=200), {"top1": 83.0})
    rows = read(path)
    assert [(row["weights"], row["image_size"], row["step"], row["top1"]) for row in rows] == [
        ("raw", "224", "100", "80.50000"),
        ("ema", "224", "100", "81.00000"),
        ("raw", "384", "100", "82.00000"),
        ("raw", "224", "200", "83.00000"),
    ]
    assert [row["v2_top1"] for row in rows] == ["69.12346", "", "", ""]
    assert (rows[0]["images"], rows[0]["v2_images"], rows[0]["epoch"]) == ("50000", "10000", "")
    assert list(rows[0])[: len(table.KEYS) + 1] == [*table.KEYS, "date"]
    assert all(row["date"] for row in rows)
    assert [file.name for file in path.parent.iterdir() if not file.name.endswith(".lock")] == ["scores.csv"]


def test_other_images_are_another_row(tmp_path: Path) -> None:
    """Also where they have the names of the same data set and split."""
    path = tmp_path / "scores.csv"
    pooled = {"split": "pooled", "split_seed": 1}
    for changes in ({}, pooled, pooled, {"holdout": 0.01}, {"fraction": 0.5}):
        table.enter(path, key(**changes), {"top1": 80.0})
    assert [row["drawn"] for row in read(path)] == ["", "pooled-1", "holdout-0.01-0"]
    some = SimpleNamespace(**(vars(DATA) | {"fraction": 0.5, "holdout": 0.1}))
    assert table.drawn(some, "train") == "holdout-0.1-fraction-0.5-0"


def enter_all(path: Path, image_sizes: range, go: Barrier) -> None:
    go.wait()
    for size in image_sizes:
        table.enter(path, key(image_size=size), {"top1": float(size)})


def test_evaluations_at_the_same_time_lose_no_row(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    shares, go = [range(start, start + 30) for start in (0, 100, 200)], FRESH.Barrier(3, timeout=60)
    processes = [FRESH.Process(target=enter_all, args=(path, share, go)) for share in shares]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0] * len(shares)
    assert sorted(int(row["image_size"]) for row in read(path)) == [*chain(*shares)]


def test_without_locks_rows_are_entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    table.enter(tmp_path / "scores.csv", key(), {"top1": 80.0})
    assert len(read(tmp_path / "scores.csv")) == 1


@pytest.mark.parametrize("missing", ["checkpoint", "weights", "precision", "split"])
def test_a_key_is_whole(missing: str) -> None:
    others = {"checkpoint": "", "weights": "", "epoch": 0, "step": 0, "split": "", "precision": ""}
    with pytest.raises(KeyError):
        table.row_of(DATA, **{name: value for name, value in others.items() if name != missing})

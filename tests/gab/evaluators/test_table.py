import csv
from pathlib import Path
from types import SimpleNamespace

import pytest

from gab.evaluators import table

DATA = SimpleNamespace(name="imagenet", image_size=224, eval_crop=0.9, eval_interpolation="bicubic")


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
    assert [file.name for file in path.parent.iterdir()] == ["scores.csv"]


@pytest.mark.parametrize("missing", ["checkpoint", "weights", "precision", "split"])
def test_a_key_is_whole(missing: str) -> None:
    others = {"checkpoint": "", "weights": "", "epoch": 0, "step": 0, "split": "", "precision": ""}
    with pytest.raises(KeyError):
        table.row_of(DATA, **{name: value for name, value in others.items() if name != missing})

"""Two runs are equal in every bit, or it is said where they are not."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gab.training import checkpoint
from scripts.same_bits import differences, main


def make(folder: Path, *, weight: float = 1.0, seconds: float = 0.0, loss: float = 2.0, hit: int = 3) -> Path:
    """What a run leaves, as far as it is compared."""
    (folder / "checkpoints").mkdir(parents=True)
    content = {
        "model": {"w": torch.tensor([weight, float("nan")]), "b": torch.tensor(weight)},
        "optimizer": {"state": [{"step": 3}]},
        "meter": {"losses": [0.5], "seconds": seconds},
        "config": {"run": {"name": folder.name}},
        "seconds": seconds,
    }
    for name in ("last", "best"):
        checkpoint.write(folder / "checkpoints" / f"{name}.pt", content)
    row = {"kind": "train", "step": 3, "loss": loss, "images_per_second": seconds}
    (folder / "record.jsonl").write_text(json.dumps(row) + "\n")
    np.savez(folder / "predictions.npz", top5=np.array([hit]))
    return folder


@pytest.fixture
def one(tmp_path: Path) -> Path:
    return make(tmp_path / "one")


def test_times_and_names_may_differ(one: Path, tmp_path: Path) -> None:
    assert differences(one, make(tmp_path / "other", seconds=7.0)) == []


@pytest.mark.parametrize(
    ("change", "places"),
    [
        ({"weight": float(np.nextafter(np.float32(1), np.float32(2)))}, ["last.pt model w", "last.pt model b"]),
        ({"loss": 2.5}, ["record.jsonl 0 loss: 2.0 and 2.5"]),
        ({"hit": 4}, ["predictions.npz top5"]),
    ],
)
def test_anything_else_is_told(change: dict, places: list[str], one: Path, tmp_path: Path) -> None:
    found = differences(one, make(tmp_path / "other", **change))
    assert found
    for place in places:
        assert any(line.startswith(place) for line in found), found


def test_zero_has_a_sign(tmp_path: Path) -> None:
    assert differences(make(tmp_path / "plus", weight=0.0), make(tmp_path / "minus", weight=-0.0))


def test_a_row_too_many_is_told(one: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "other")
    record = other / "record.jsonl"
    record.write_text(2 * record.read_text())
    assert differences(one, other) == ["record.jsonl: 1 entries and 2 entries"]


def test_missing_predictions_are_told(one: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "other")
    (other / "predictions.npz").unlink()
    assert [line.split(":")[0] for line in differences(one, other)] == ["predictions.npz top5"]


def test_the_command(one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    other = make(tmp_path / "other", loss=2.5)
    monkeypatch.setattr(sys, "argv", ["same_bits.py", str(one), str(other)])
    with pytest.raises(SystemExit, match="differ in 1 places"):
        main()
    assert "record.jsonl 0 loss: 2.0 and 2.5" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["same_bits.py", str(one), str(tmp_path / "missing")])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert "there is no checkpoint" in capsys.readouterr().err

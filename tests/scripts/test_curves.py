"""scripts/curves.py: the evaluations of runs as one table."""

import csv
import json
from pathlib import Path

import pytest

from gab.errors import UserError
from scripts import curves

ORIGIN = {
    "time": "2026-01-02T03:04:05+00:00",
    "command": "/home/me/.venv/bin/python /home/me/gab/train.py experiment=digits data.root=/data/digits seed=1",
    "commit": "abc",
    "uncommitted": "uncommitted.diff",
    "hardware": {"cpu": "a processor", "usable_cores": 2, "gpus": []},
}
ROWS = [
    {"kind": "start", "variant": "vit_t16", "seed": 1},
    {"kind": "train", "step": 3, "loss": 2.5},
    {"kind": "train", "step": 4, "loss": 2.0},
    {"kind": "eval", "epoch": 1, "step": 4, "samples": 64, "top1": 50.0, "top5": 90.0, "loss": 1.5},
    {"kind": "eval", "epoch": 2, "step": 8, "samples": 128, "top1": 60.0, "top5": 95.0, "loss": 1.0},
    {"kind": "end", "top1": 60.0},
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "record.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "provenance.json").write_text(json.dumps([ORIGIN]))
    (folder / "config.yaml").write_text("data: {name: digits}\n")
    return folder


def test_a_line_for_every_evaluation(run: Path, tmp_path: Path) -> None:
    table = tmp_path / "curves.csv"
    curves.main([str(table), str(run), str(run)])
    rows = list(csv.DictReader(table.open()))
    assert [(row["epoch"], row["top1"], row["train_loss"]) for row in rows] == 2 * [
        ("1", "50.0", "2.0"),
        ("2", "60.0", "2.0"),
    ]
    assert {(row["variant"], row["data"], row["seed"], row["commit"], row["date"]) for row in rows} == {
        ("vit_t16", "digits", "1", "abc+", "2026-01-02")
    }


def test_what_changed_between_the_starts_of_a_run_is_named(run: Path) -> None:
    other = {"commit": "def", "uncommitted": None, "hardware": ORIGIN["hardware"] | {"cpu": "another"}}
    (run / "provenance.json").write_text(json.dumps([ORIGIN, ORIGIN, ORIGIN | other]))
    line = curves.curve(run)[-1]
    assert (line["commit"], line["cpu"], line["cores"]) == ("abc+, then def", "a processor, then another", "2")


def test_a_table_says_nothing_of_folders(run: Path) -> None:
    assert curves.command(ORIGIN["command"]) == "python train.py experiment=digits data.root=FOLDER seed=1"
    assert str(run) not in str(curves.curve(run))


def test_a_folder_without_evaluations_is_refused(run: Path) -> None:
    (run / "record.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    with pytest.raises(UserError, match="is not the folder of a run that has evaluated once"):
        curves.curve(run)


@pytest.mark.parametrize("arguments", [[], ["curves.csv"]])
def test_a_command_without_runs_is_told_how(arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        curves.main(arguments)
    assert "usage: " in capsys.readouterr().err

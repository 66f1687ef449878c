"""σ and A of several runs, and scripts/figures.py, which draws them."""

import csv
import json
from pathlib import Path

import pytest

from gab.errors import UserError
from gab.tracking.figures_of_runs import changes_by_layer, changes_over_time, check, rows_of_runs
from gab.tracking.record import Row
from scripts import figures


def record(layers: int, step: float, heads: int = 1) -> list[Row]:
    """Layer k of a run moves by k times `step` in each of two epochs; σ from -3, A from 2."""
    found: list[Row] = []
    for epoch in range(3):
        moved = [[step * epoch * layer + head for head in range(heads)] for layer in range(1, layers + 1)]
        sigma = [[-3 - value for value in layer] if heads > 1 else -3 - layer[0] for layer in moved]
        amplitude = [[2 + value for value in layer] if heads > 1 else 2 + layer[0] for layer in moved]
        found.append({"kind": "eval", "epoch": epoch, "sigma": sigma, "amplitude": amplitude})
    return found


def test_changes() -> None:
    records = {"a": record(2, 0.1), "b": record(3, -0.2, heads=2)}
    check(records)
    over_time = [axes for axes in changes_over_time(records).axes if axes.get_visible() and axes.lines]
    assert len(over_time) == 4
    assert over_time[0].get_ylim() == over_time[2].get_ylim()  # σ of both
    [sigma, amplitude] = [axes for axes in changes_by_layer(records).axes if axes.lines]
    lines = {line.get_label(): line.get_ydata() for line in sigma.lines[1:]}
    assert lines["a, epoch 2"] == pytest.approx([0.2, 0.4])
    assert lines["b, epoch 2"] == pytest.approx([-0.4, -0.8, -1.2])
    assert len({(line.get_color(), line.get_marker()) for line in amplitude.lines[1:]}) == 2
    rows = list(rows_of_runs(records))
    assert len(rows) == 3 * (2 + 3 * 2)
    assert rows[-1] == pytest.approx(
        {"run": "b", "epoch": 2, "layer": 3, "head": 2, "sigma": 2.8, "amplitude": 1.8}
        | {"sigma_change": -1.2, "amplitude_change": -1.2}
    )


def test_the_script(tmp_path: Path) -> None:
    for name, step in (("one/run", 0.1), ("two/run", 0.2)):  # the same name twice
        (tmp_path / name).mkdir(parents=True)
        lines = [json.dumps(row) + "\n" for row in record(2, step)]
        (tmp_path / name / "record.jsonl").write_text("".join(lines))
    figures.main(["bias", str(tmp_path / "one/run"), str(tmp_path / "two/run"), "--out", str(tmp_path / "out")])
    names = ["bias.csv", "bias_by_layer.pdf", "bias_by_layer.png", "bias_over_time.pdf", "bias_over_time.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    with (tmp_path / "out" / "bias.csv").open(newline="") as file:
        assert len({row["run"] for row in csv.DictReader(file)}) == 2


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"b has no Gaussian, .*: give runs with model\.gab=true"):
        check({"a": record(2, 0.1), "b": [{"kind": "eval", "epoch": 0, "sigma": None}]})
    with pytest.raises(SystemExit):
        figures.main(["bias", str(tmp_path)])
    assert "Cannot read the record" in capsys.readouterr().err
    (tmp_path / "record.jsonl").write_text('{"kind": "eval"}\n{"kind": \n{"kind": "end"}\n')
    with pytest.raises(SystemExit):
        figures.main(["bias", str(tmp_path)])
    assert "line 2, is not a row of a record" in capsys.readouterr().err

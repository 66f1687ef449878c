import json
import math
import os
import resource
from pathlib import Path

import numpy as np
import pytest
import torch

from gab.errors import UserError
from gab.tracking.metrics import DashboardRows
from gab.tracking.record import Record, read


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "record.jsonl"


def write_three(path: Path) -> list[int]:
    record = Record(path)
    positions = []
    for step in range(3):
        record.write("train", step=step, loss=1.5)
        positions.append(record.position)
    record.close()
    return positions


def test_rows_come_back_as_plain_python(path: Path) -> None:
    record = Record(path)
    written = record.write(
        "eval", top1=np.float32(50.0), images=np.int64(7), sigma=torch.tensor([[5.0, 4.0]]), mfu=None, ema=(1, 2)
    )
    expected = {"kind": "eval", "top1": 50.0, "images": 7, "sigma": [[5.0, 4.0]], "mfu": None, "ema": [1, 2]}
    assert written == expected
    assert read(path) == [expected]


def test_every_row_is_in_the_file_at_once(path: Path) -> None:
    record = Record(path)
    record.write("train", step=1)
    assert read(path) == [{"kind": "train", "step": 1}]
    assert record.position == path.stat().st_size == record.sync()


def test_non_finite_numbers_are_strict_json_and_come_back(path: Path) -> None:
    Record(path).write("train", loss=math.nan, lr=math.inf, sigma=[-math.inf, 5.0])
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {
        "kind": "train", "loss": "NaN", "lr": "Infinity", "sigma": ["-Infinity", 5.0]
    }  # fmt: skip
    (row,) = read(path)
    assert math.isnan(row["loss"])
    assert row["lr"] == math.inf
    assert row["sigma"] == [-math.inf, 5.0]


def test_a_row_cut_anywhere_is_left_out_and_overwritten(path: Path) -> None:
    positions = write_three(path)
    whole = path.read_bytes()
    for end in range(positions[1], positions[2] - 1):
        path.write_bytes(whole[:end])
        assert [row["step"] for row in read(path)] == [0, 1]
        record = Record(path)
        assert record.position == positions[1]
        record.write("train", step=2, loss=1.5)
        record.close()
        assert path.read_bytes() == whole


def test_zeros_at_the_end_as_after_a_power_cut_are_left_out(path: Path) -> None:
    write_three(path)
    with path.open("ab") as file:
        file.write(bytes(5000))
    assert len(read(path)) == 3


def test_a_long_broken_line_is_cut_off(path: Path) -> None:
    positions = write_three(path)
    with path.open("ab") as file:
        file.write(b"x" * 200_000)
    assert Record(path).position == positions[2]


def test_truncate_drops_what_came_after_the_checkpoint(path: Path) -> None:
    positions = write_three(path)
    record = Record(path)
    record.truncate(positions[0])
    record.write("train", step=9)
    assert [row["step"] for row in read(path)] == [0, 9]
    record.truncate(0)
    assert read(path) == []


@pytest.mark.parametrize("off", [-1, 1, 10_000])
def test_truncate_refuses_a_place_where_no_row_ends(path: Path, off: int) -> None:
    positions = write_three(path)
    record = Record(path)
    with pytest.raises(UserError, match=r"record\.jsonl was changed .* run\.name"):
        record.truncate(positions[1] + off)
    assert len(read(path)) == 3


def test_a_broken_line_in_the_middle_is_named(path: Path) -> None:
    write_three(path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:-4], lines[2], ""]))
    with pytest.raises(UserError, match=r"record\.jsonl, line 2, "):
        read(path)


def test_a_missing_record_is_a_sentence(path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        read(path)


def test_a_record_in_a_missing_folder_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Cannot write .*No such file"):
        Record(tmp_path / "none" / "record.jsonl")


def test_a_disk_that_takes_half_a_row_is_a_sentence_and_costs_that_row_only(path: Path) -> None:
    positions = write_three(path)
    record = Record(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (positions[2] + 10, hard))
    try:
        with pytest.raises(UserError, match="make room") as caught:
            record.write("eval", top1=50.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "last checkpoint" in str(caught.value)
    assert path.stat().st_size == positions[2] + 10
    assert Record(path).position == positions[2]


def test_a_disk_that_fails_to_sync_is_a_sentence(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = Record(path)
    record.write("train", step=1)

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for synced in (record.sync, lambda: record.truncate(0), lambda: record.write("eval", step=1)):
        with pytest.raises(UserError, match=r"Cannot write .* \(No space left on device\): make room"):
            synced()


def test_other_ranks_write_nothing(path: Path) -> None:
    record = Record(path, active=False)
    assert record.write("train", loss=np.float32(1.0)) == {"kind": "train", "loss": 1.0}
    record.truncate(100)
    assert record.position == record.sync() == 0
    record.close()
    assert not path.exists()


@pytest.mark.parametrize("line", ["{}", '{"step": 1}', "[1]", "3"])
def test_a_line_without_a_kind_is_no_row(path: Path, line: str) -> None:
    write_three(path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], line, *lines[1:], ""]))
    with pytest.raises(UserError, match=r"record\.jsonl, line 2, is not a row of a record \(not an object with a kind"):
        read(path)


def test_a_dashboard_waits_at_a_broken_last_line_and_refuses_another(path: Path) -> None:
    write_three(path)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"kind": "tr\n')
    rows = DashboardRows(path)
    assert rows.count() == len(read(path)) == 3
    path.write_bytes(whole + b'{"kind": "train", "step": 3}\n')
    assert rows.count() == 4
    path.write_bytes(b'{"kind": "tr\n' + whole)
    with pytest.raises(ValueError, match="control character"):
        DashboardRows(path).count()

"""The benchmark of receptive fields runs, and compares what is the same."""

import csv
import sys
from pathlib import Path

import pytest

from scripts import bench_erf


def test_it_compares_the_same_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openerf")
    table = tmp_path / "bench_erf.csv"
    options = ["--networks", "test_vit", "--images", "2", "--rounds", "1", "--output", str(table)]
    monkeypatch.setattr(sys, "argv", ["bench_erf.py", *options])
    monkeypatch.setattr(bench_erf, "SIDE", 160)
    bench_erf.main()
    [row] = csv.DictReader(table.open())
    assert float(row["seconds"]) > 0
    assert float(row["openerf_seconds"]) > 0
    assert float(row["largest_difference"]) < 1e-4
    assert "scripts/bench_erf.py --networks test_vit" in row["command"]

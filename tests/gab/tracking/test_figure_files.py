"""Which files a figure becomes, and that equal numbers give equal SVG."""

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from gab.errors import UserError
from gab.tracking.figure_files import save


def drawn() -> Figure:
    """A line, a map and a clipped patch: what gets an id in an SVG file."""
    figure = Figure(figsize=(3, 2))
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], marker="o", label="σ")
    left.legend()
    right.imshow(np.eye(4))
    return figure


def test_png_and_pdf_unless_something_else_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GAB_FIGURES", raising=False)
    assert save(drawn(), tmp_path / "new" / "a.b") == [tmp_path / "new" / "a.b.png", tmp_path / "new" / "a.b.pdf"]
    monkeypatch.setenv("GAB_FIGURES", "svg, png,svg")
    files = save(drawn(), tmp_path / "c")
    assert [file.name for file in files] == ["c.svg", "c.png"]
    assert all(file.stat().st_size for file in files)


def test_the_same_numbers_give_the_same_svg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAB_FIGURES", "svg")
    [one], [other] = (save(drawn(), tmp_path / name) for name in ("one", "other"))
    assert one.read_text() == other.read_text()
    assert ET.parse(one).getroot().tag.endswith("svg")


@pytest.mark.parametrize("named", ["jpg", "", "png,,svg", "PNG"])
def test_unknown_files_are_refused(named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAB_FIGURES", named)
    with pytest.raises(UserError, match="name some of png, pdf, svg"):
        save(drawn(), tmp_path / "a")

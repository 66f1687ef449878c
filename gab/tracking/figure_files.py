"""Figures as files: PNG and PDF, or what GAB_FIGURES names in the environment, such as `png,svg`; W&B gets the PNG."""

import os
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from gab.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = {"png": 150, "pdf": 150, "svg": 100}  # of pictures; in SVG, which is text, they take a third more room


def endings() -> list[str]:
    """Which files a figure becomes.

    Raises:
        UserError: GAB_FIGURES names others.
    """
    named = os.environ.get("GAB_FIGURES", "png,pdf")
    found = list(dict.fromkeys(part.strip() for part in named.split(",")))
    if wrong := [ending for ending in found if ending not in DPI]:
        raise UserError(f"GAB_FIGURES={named} has {wrong[0]!r}: name some of {', '.join(DPI)}, with commas")
    return found


def save(figure: "Figure", path: Path) -> list[Path]:
    """A file for each of `endings`, in a folder that is made; `path` is without ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_name(f"{path.name}.{ending}") for ending in endings()]
    for file, ending in zip(files, endings(), strict=True):
        write(figure, file, ending)
    return files


def write(figure: "Figure", file: Path | IO[str], ending: str) -> None:
    """One file; the same numbers give the same SVG."""
    import matplotlib

    metadata: dict[str, Any] = {"Date": None} if ending == "svg" else {}
    with matplotlib.rc_context({"svg.hashsalt": "gab", "svg.fonttype": "none"}):  # words stay words
        figure.savefig(file, format=ending, dpi=DPI[ending], metadata=metadata)

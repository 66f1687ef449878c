"""Figures that a row of the record names, as media of the dashboard."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gab.tracking.media import images

pytestmark = pytest.mark.usefixtures("no_account")
ROW = {"kind": "evaluate", "epoch": 1, "step": 10, "erf_area_50": 3.0}
ROW |= {"figures": {"erf": "figures/erf.png", "gone": "figures/gone.png", "broken": "figures/broken.png"}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "figures").mkdir(parents=True)
    Image.fromarray(np.full((5, 7, 3), 9, dtype=np.uint8)).save(folder / "figures" / "erf.png")
    (folder / "figures" / "broken.png").write_bytes(b"no image")
    return folder


def test_images_of_a_row(folder: Path) -> None:
    """Those that are gone or damaged are left out."""
    assert set(images(ROW, folder)) == {"figures/erf"}
    assert images({"kind": "train"}, folder) == {}


def test_a_mirrored_figure(folder: Path, mirrored, wandb_files) -> None:
    """Beside the numbers of its row, with the file."""
    run = mirrored(folder)
    run.log(ROW)
    run.finish()
    assert run.warnings == []
    [row] = wandb_files(folder).rows
    assert row["evaluate/erf_area_50"] == 3.0
    assert (row["figures/erf._type"], row["figures/erf.width"]) == ("image-file", 7)
    assert len(list(folder.glob("wandb/offline-run-*/files/media/images/figures/erf_*.png"))) == 1

"""A small data set of real photographs: crops of scikit-learn's two sample photos, in three classes."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from data.config import DataConfig

CLASSES = ["flower", "roof", "sky"]
COUNTS = {"train": 12, "val": 5}  # images per class


@pytest.fixture(scope="session")
def photos() -> dict[str, Image.Image]:
    """china.jpg (a temple's roofs below a bright sky) and flower.jpg, both 640 x 427, RGB."""
    china, flower = (Image.fromarray(pixels) for pixels in load_sample_images().images)
    return {"china": china, "flower": flower}


def photo_crop(photos: dict[str, Image.Image], kind: str, rng: np.random.Generator) -> Image.Image:
    """A piece of a photo that shows `kind`, 60 to 280 pixels on a side."""
    left, top, right, bottom = {"flower": (120, 0, 560, 427), "roof": (0, 130, 640, 427), "sky": (0, 0, 640, 200)}[kind]
    width, height = rng.integers(60, min(280, bottom - top), size=2)
    x, y = rng.integers(left, right - width), rng.integers(top, bottom - height)
    return photos["flower" if kind == "flower" else "china"].crop((x, y, x + width, y + height))


@pytest.fixture(scope="session")
def photo_folder(photos: dict[str, Image.Image], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ROOT/{train,val}/{flower,roof,sky}/NN.jpg: JPEGs of many sizes, and one that is above the stored size of 500."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for split, count in COUNTS.items():
        for kind in CLASSES:
            (root / split / kind).mkdir(parents=True)
            for i in range(count):
                quality = int(rng.integers(75, 96))
                photo_crop(photos, kind, rng).save(root / split / kind / f"{i:02d}.jpg", quality=quality)
        photos["flower"].save(root / split / "flower" / "whole.jpg", quality=92)
        photo_crop(photos, "sky", rng).convert("L").save(root / split / "sky" / "grey.jpg", quality=90)
        photo_crop(photos, "roof", rng).save(root / split / "roof" / "progressive.jpg", progressive=True)
    return root


@pytest.fixture
def photo_config(photo_folder: Path) -> DataConfig:
    """`photo_folder` at 64 px: a fresh copy of the config for each test."""
    return DataConfig(name="folder", reader="folder", root=str(photo_folder), image_size=64)

"""scikit-learn's handwritten digits as 32 x 32 RGB images; they come with the package, so no file is needed."""

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from data.readers.base import ArraySource, Source

SIZE = 32  # pixels
SHARE, SPLIT_SEED = 0.2, 0  # of validation


def open_split(root: Path, split: str) -> Source:
    """1,437 images to train on or 360 to validate on, stratified by class; `root` holds .beton files only."""
    targets, pixels = _all()
    train, val = train_test_split(np.arange(len(targets)), test_size=SHARE, random_state=SPLIT_SEED, stratify=targets)
    chosen = train if split == "train" else val
    chosen = chosen[np.lexsort((chosen, targets[chosen]))]  # by class, then by position
    labels = targets[chosen].astype(np.int64)
    names = [f"{label}/{i:04d}" for label, i in zip(labels, chosen, strict=True)]
    return ArraySource([str(digit) for digit in range(10)], labels, names, pixels[chosen])


def download(root: Path) -> None:
    """Does nothing: scikit-learn brings the images."""


@cache  # a run opens its splits several times
def _all() -> tuple[np.ndarray, np.ndarray]:
    """Labels (1797,) and pixels, uint8 (1797, 32, 32, 3), of all digits."""
    digits = load_digits()
    return digits.target, np.stack([_enlarged(image) for image in digits.images])


def _enlarged(greys: np.ndarray) -> np.ndarray:
    """8 x 8 greys from 0 to 16 -> uint8 (32, 32, 3), bicubic."""
    image = Image.fromarray((greys * 255 / 16).round().astype(np.uint8))
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC).convert("RGB"))

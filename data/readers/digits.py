"""scikit-learn's handwritten digits as 32 x 32 RGB images; they come with the package, so no file is needed."""

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
    digits = load_digits()
    train, val = train_test_split(
        np.arange(len(digits.target)), test_size=SHARE, random_state=SPLIT_SEED, stratify=digits.target
    )
    chosen = train if split == "train" else val
    chosen = chosen[np.lexsort((chosen, digits.target[chosen]))]  # by class, then by position
    labels = digits.target[chosen].astype(np.int64)
    names = [f"{label}/{i:04d}" for label, i in zip(labels, chosen, strict=True)]
    pixels = np.stack([_enlarged(digits.images[i]) for i in chosen])
    return ArraySource([str(digit) for digit in range(10)], labels, names, pixels)


def download(root: Path) -> None:
    """Nothing to fetch."""


def _enlarged(greys: np.ndarray) -> np.ndarray:
    """8 x 8 greys from 0 to 16 -> uint8 (32, 32, 3), bicubic."""
    image = Image.fromarray((greys * 255 / 16).round().astype(np.uint8))
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC).convert("RGB"))

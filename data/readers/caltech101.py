"""Caltech-101 (Fei-Fei et al. 2004): 101_ObjectCategories/ with a folder per class, the background one of them."""

from pathlib import Path

import numpy as np
from torchvision.datasets import Caltech101

from data.errors import DataError
from data.order import hash_of
from data.readers import folder
from data.readers.base import Source, Subset

FOLDER = "caltech101/101_ObjectCategories"
ARCHIVES = {"caltech101/caltech-101.zip": "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip"}
TRAINING = 30  # images of each class, in the usual protocol


def published(root: Path) -> tuple[str, ...]:
    """None was published; the usual protocol has training and test."""
    return "train", "test"


def open_pool(root: Path) -> Source:
    """All images; classes are the sorted folders. Raises DataError if the archive is not unpacked."""
    if not (root / FOLDER).is_dir():
        raise DataError(
            f"{root} does not hold {FOLDER}/; unpack 101_ObjectCategories.tar.gz of caltech-101.zip there "
            "(scripts/prepare.py caltech101 --download does)."
        )
    return folder.FolderSource(root / FOLDER, folder.list_classes(root / FOLDER))


def open_split(root: Path, split: str) -> Source:
    """Thirty images of each class to train on (all but one of a smaller class), the same for everyone; or the rest."""
    pool = open_pool(root)
    chosen = np.zeros(len(pool), bool)
    for label in range(len(pool.classes)):
        members = np.flatnonzero(pool.labels == label)
        mixed = members[np.argsort(hash_of(label, np.arange(len(members))))]
        chosen[mixed[: min(TRAINING, len(members) - 1)]] = True
    return Subset(pool, np.flatnonzero(chosen == (split == "train")))


def download(root: Path) -> None:
    """Downloads by torchvision."""
    Caltech101(root, download=True)

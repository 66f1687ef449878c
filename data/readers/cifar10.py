"""CIFAR-10: the published Python batches (read by torchvision), or a folder of images per class."""

from pathlib import Path

import numpy as np
from torchvision.datasets import CIFAR10

from data.errors import DataError
from data.readers import folder
from data.readers.base import ArraySource, Source

ARCHIVES = {CIFAR10.filename: CIFAR10.url}


def published(root: Path) -> tuple[str, ...]:
    """Training and test, or what the folders are."""
    return folder.published(root) if folder.has_split(root, "train") else ("train", "test")


def open_split(root: Path, split: str, kind: type[CIFAR10] = CIFAR10) -> Source:
    """50,000 images to train on or the 10,000 of the test set; classes in the published (sorted) order.

    Raises DataError if neither the batches nor the folders are there, or the batches are damaged.
    """
    if folder.has_split(root, "train"):
        return folder.open_split(root, split)
    try:
        cifar = kind(str(root), train=split == "train")
    except RuntimeError as error:
        raise DataError(
            f"{root} holds neither {kind.base_folder}/ with the unchanged files of {kind.filename} "
            f"nor train/ and test/; fetch {kind.url} and unpack it there."
        ) from error
    labels = np.asarray(cifar.targets, np.int64)
    order = np.argsort(labels, kind="stable")
    names = [f"{cifar.classes[labels[i]]}/{i:05d}" for i in order]
    return ArraySource(list(cifar.classes), labels[order], names, cifar.data[order])


def download(root: Path) -> None:
    """Downloads by torchvision."""
    CIFAR10(str(root), download=True)

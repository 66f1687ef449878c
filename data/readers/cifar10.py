"""CIFAR-10: the published Python batches (read by torchvision), or a folder of images per class."""

from pathlib import Path

import numpy as np
from torchvision.datasets import CIFAR10

from data.errors import DataError
from data.readers import folder
from data.readers.base import ArraySource, Source, require_folder


def open_split(root: Path, split: str) -> Source:
    """50,000 images to train on or the 10,000 of the test set to validate on; classes in the published (sorted) order.

    Raises DataError if neither the batches nor the folders are there, or the batches are damaged.
    """
    require_folder(root)
    if (root / "train").is_dir():
        return folder.open_split(root, split)
    try:
        cifar = CIFAR10(str(root), train=split == "train")
    except RuntimeError as error:
        raise DataError(
            f"{root} holds neither {CIFAR10.base_folder}/ with the unchanged files of {CIFAR10.filename} "
            f"nor train/ and test/; fetch {CIFAR10.url} and unpack it there."
        ) from error
    labels = np.asarray(cifar.targets, np.int64)
    order = np.argsort(labels, kind="stable")
    names = [f"{cifar.classes[labels[i]]}/{i:05d}" for i in order]
    return ArraySource(list(cifar.classes), labels[order], names, cifar.data[order])

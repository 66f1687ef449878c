"""CIFAR-100 with its 100 fine labels: the published Python batches, or a folder of images per class."""

from pathlib import Path

from torchvision.datasets import CIFAR100

from data.readers import cifar10
from data.readers.base import Source
from data.readers.cifar10 import published as published

ARCHIVES = {CIFAR100.filename: CIFAR100.url}


def open_split(root: Path, split: str) -> Source:
    """50,000 images to train on or the 10,000 of the test set; see `data.readers.cifar10`."""
    return cifar10.open_split(root, split, CIFAR100)


def download(root: Path) -> None:
    """Downloads by torchvision."""
    CIFAR100(str(root), download=True)

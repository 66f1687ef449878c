"""Imagenette (fast.ai, version 2): one of its three archives, unpacked, or a folder per class."""

from pathlib import Path

from torchvision.datasets import Imagenette

from data.errors import DataError
from data.readers import folder
from data.readers.base import Source

FOLDERS = ("imagenette2", "imagenette2-320", "imagenette2-160")  # full size, then by the shorter side
ARCHIVES = {"imagenette2.tgz": "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2.tgz"}


def open_split(root: Path, split: str) -> Source:
    """The images of `split`, at the largest size that is there; classes are the sorted WordNet ids.

    Raises DataError if none is there.
    """
    for base in (root, *(root / name for name in FOLDERS)):
        if folder.has_split(base, split):
            return folder.open_split(base, split)
    raise DataError(
        f"{root} holds neither {FOLDERS[0]}/ nor train/ and val/; unpack imagenette2.tgz there "
        "(scripts/prepare.py imagenette --download does)."
    )


def download(root: Path) -> None:
    """Downloads by torchvision, at full size."""
    if not (root / FOLDERS[0]).is_dir():
        Imagenette(root, download=True)

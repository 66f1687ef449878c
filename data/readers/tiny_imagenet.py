"""Tiny-ImageNet: tiny-imagenet-200/ as published, its validation images labelled by a table; or a folder per class."""

from pathlib import Path

from torchvision.datasets.utils import download_and_extract_archive

from data.errors import DataError
from data.readers import folder
from data.readers.base import FileSource, Source

URL, MD5 = "http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de"
ARCHIVES = {"tiny-imagenet-200.zip": URL}
FOLDER = "tiny-imagenet-200"
TABLE = "val_annotations.txt"  # file name, WordNet id, box


def open_split(root: Path, split: str) -> Source:
    """The images of `split`; classes are the sorted WordNet ids. Raises DataError if the archive is not unpacked."""
    base = root / FOLDER if (root / FOLDER).is_dir() else root
    if not folder.has_split(base, split):
        raise DataError(
            f"{root} holds neither {FOLDER}/ nor train/ and val/; unpack tiny-imagenet-200.zip there "
            "(scripts/prepare.py tiny_imagenet --download does)."
        )
    table = base / "val" / TABLE
    if split == "train" or not table.is_file():
        source = folder.open_split(base, split)
        files = zip(source.labels.tolist(), source.names, strict=True)  # without the folder images/ in the names
        return FileSource(folder.split_folder(base, split), source.classes, files)
    classes = folder.list_classes(base / "train")
    labels = {name: label for label, name in enumerate(classes)}
    rows = (line.split("\t") for line in table.read_text().splitlines())
    return FileSource(base / "val" / "images", classes, ((labels[row[1]], row[0]) for row in rows))


def download(root: Path) -> None:
    """Downloads from Stanford, 0.25 GB."""
    if not (root / FOLDER).is_dir():
        download_and_extract_archive(URL, str(root), md5=MD5)

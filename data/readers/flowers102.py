"""Oxford Flowers-102 (Nilsback and Zisserman 2008), in torchvision's layout."""

from pathlib import Path

from torchvision.datasets import Flowers102

from data.errors import DataError
from data.readers.base import FileSource, Source

FOLDER = "flowers-102"
URL = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
ARCHIVES = {f"{FOLDER}/{name}": URL + name for name in ("102flowers.tgz", "imagelabels.mat", "setid.mat")}


def published(root: Path) -> tuple[str, ...]:
    """The splits that are published: all three."""
    return "train", "val", "test"


def open_split(root: Path, split: str) -> Source:
    """The images of `split`; classes in the published order. Raises DataError if files are missing or changed."""
    try:
        flowers = Flowers102(root, split)
    except RuntimeError as error:
        raise DataError(
            f"{root} does not hold {FOLDER}/ with jpg/ and the unchanged imagelabels.mat and setid.mat; put them "
            "there (scripts/prepare.py flowers102 --download does)."
        ) from error
    paths = [path.relative_to(root).as_posix() for path in flowers._image_files]
    return FileSource(root, list(flowers.classes), zip(flowers._labels, paths, strict=True))


def download(root: Path) -> None:
    """Downloads by torchvision."""
    Flowers102(root, download=True)

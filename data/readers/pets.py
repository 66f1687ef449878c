"""Oxford-IIIT Pet (Parkhi et al. 2012), in torchvision's layout."""

from pathlib import Path

from torchvision.datasets import OxfordIIITPet

from data.errors import DataError
from data.readers.base import FileSource, Source

FOLDER = "oxford-iiit-pet"
URL = "https://www.robots.ox.ac.uk/~vgg/data/pets/data/"
ARCHIVES = {f"{FOLDER}/{name}": URL + name for name in ("images.tar.gz", "annotations.tar.gz")}


def published(root: Path) -> tuple[str, ...]:
    """Training ("trainval" in the archive) and test."""
    return "train", "test"


def open_split(root: Path, split: str) -> Source:
    """The images of a published list; classes in its order. Raises DataError if the archives are not unpacked."""
    pets = _opened(root, split)
    paths = [path.relative_to(root).as_posix() for path in pets._images]
    return FileSource(root, pets.classes, zip(pets._labels, paths, strict=True))


def open_pool(root: Path) -> Source:
    """Every image of the archive, also those in no list, whose class is told by their name."""
    pets = _opened(root, "train")
    labels = {_breed(path): label for path, label in zip(pets._images, pets._labels, strict=True)}
    images = [path for path in (root / FOLDER / "images").glob("*.jpg") if _breed(path) in labels]
    files = ((labels[_breed(path)], path.relative_to(root).as_posix()) for path in images)
    return FileSource(root, pets.classes, files)


def download(root: Path) -> None:
    """Downloads by torchvision."""
    OxfordIIITPet(root, download=True)


def _breed(path: Path) -> str:
    return path.name.rsplit("_", 1)[0]


def _opened(root: Path, split: str) -> OxfordIIITPet:
    try:
        return OxfordIIITPet(root, "trainval" if split == "train" else "test")
    except RuntimeError as error:
        raise DataError(
            f"{root} does not hold {FOLDER}/ with images/ and annotations/; unpack images.tar.gz and "
            "annotations.tar.gz there (scripts/prepare.py pets --download does)."
        ) from error

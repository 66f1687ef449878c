"""Stanford Dogs (Khosla et al. 2011): Images/ with a folder per breed, and lists as MATLAB files."""

from pathlib import Path

from scipy.io import loadmat
from torchvision.datasets.utils import download_and_extract_archive

from data.errors import DataError
from data.readers import folder
from data.readers.base import FileSource, Source

URL = "http://vision.stanford.edu/aditya86/ImageNetDogs/"
ARCHIVES = {name: URL + name for name in ("images.tar", "lists.tar")}
IMAGES = "Images"


def published(root: Path) -> tuple[str, ...]:
    """The splits that are published: training and test."""
    return "train", "test"


def open_split(root: Path, split: str) -> Source:
    """The images of a published list; classes are the sorted folders of the breeds.

    Raises DataError if the archives are not unpacked.
    """
    path = root / f"{split}_list.mat"
    if not (path.is_file() and (root / IMAGES).is_dir()):
        raise DataError(
            f"{root} does not hold {IMAGES}/, train_list.mat and test_list.mat; unpack images.tar and lists.tar there "
            "(scripts/prepare.py dogs --download does)."
        )
    classes = folder.list_classes(root / IMAGES)
    labels = {name: label for label, name in enumerate(classes)}
    images = [str(name) for name in loadmat(path, squeeze_me=True)["file_list"]]
    return FileSource(root / IMAGES, classes, ((labels[name.split("/")[0]], name) for name in images))


def download(root: Path) -> None:
    """Downloads from the authors' site, 0.8 GB."""
    if not (root / IMAGES).is_dir():
        download_and_extract_archive(URL + "images.tar", str(root))
    if not (root / "test_list.mat").is_file():
        download_and_extract_archive(URL + "lists.tar", str(root))

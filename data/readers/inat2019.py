"""iNaturalist 2019: one folder of images, and a list of each split as JSON (COCO's fields)."""

import json
from pathlib import Path

from torchvision.datasets import INaturalist
from torchvision.datasets.utils import download_and_extract_archive

from data.errors import DataError
from data.readers.base import FileSource, Source

FOLDERS = ("train_val2019", "2019")  # as the archive unpacks, and as torchvision then calls it
URL = "https://ml-inat-competition-datasets.s3.amazonaws.com/2019/"
ARCHIVES = {  # the first under torchvision's name
    "2019.tgz": f"{URL}train_val2019.tar.gz",
    **{name: URL + name for name in ("train2019.json.tar.gz", "val2019.json.tar.gz")},
}


def open_split(root: Path, split: str) -> Source:
    """The images of a published list; classes such as "Birds/210" in the order of their numbers.

    Raises DataError if the archives are not unpacked, or a list does not fit.
    """
    folders = [root / name for name in FOLDERS if (root / name).is_dir()]
    path = root / f"{split}2019.json"
    if not (folders and path.is_file()):
        raise DataError(
            f"{root} does not hold {FOLDERS[0]}/, train2019.json and val2019.json; unpack their archives there "
            "(scripts/prepare.py inat2019 --download does)."
        )
    try:
        content = json.loads(path.read_bytes())
        labels = {entry["image_id"]: entry["category_id"] for entry in content["annotations"]}
        files = [(labels[entry["id"]], entry["file_name"].split("/", 1)[1]) for entry in content["images"]]
    except (ValueError, KeyError, IndexError) as error:
        raise DataError(f"{path} is not a list of iNaturalist 2019 ({error!r}); fetch it again.") from error
    return FileSource(folders[0], _classes(path, files), files)


def download(root: Path) -> None:
    """The images by torchvision, the lists from the competition's store."""
    if not any((root / name).is_dir() for name in FOLDERS):
        INaturalist(root, version="2019", download=True)
    for split in ("train", "val"):
        if not (root / f"{split}2019.json").is_file():
            download_and_extract_archive(f"{URL}{split}2019.json.tar.gz", str(root))


def _classes(path: Path, files: list[tuple[int, str]]) -> list[str]:
    """The folder of every label, of which each must have one."""
    names = {label: file.rsplit("/", 1)[0] for label, file in files}
    if sorted(names) != list(range(len(names))):
        raise DataError(f"{path} has no images of some classes below {max(names)}; fetch it again.")
    return [names[label] for label in range(len(names))]

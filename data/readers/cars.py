"""Stanford Cars (Krause et al. 2013), in torchvision's layout."""

from pathlib import Path

from torchvision.datasets import StanfordCars

from data.errors import DataError
from data.readers.base import FileSource, Source


def published(root: Path) -> tuple[str, ...]:
    """The splits that are published: training and test."""
    return "train", "test"


def open_split(root: Path, split: str) -> Source:
    """The images of `split`; classes in the published order. Raises DataError if files are missing."""
    try:
        cars = StanfordCars(root, split)
    except RuntimeError as error:
        raise DataError(
            f"{root} does not hold stanford_cars/ with cars_train/, cars_test/, cars_test_annos_withlabels.mat and "
            "devkit/; the published site is gone, so put the files of a copy there."
        ) from error
    files = ((int(label), Path(path).relative_to(root).as_posix()) for path, label in cars._samples)
    return FileSource(root, [name.replace("/", "-") for name in cars.classes], files)  # one is called "Ram C/V ..."

"""A folder per class: ROOT/train/CLASS/**/IMAGE, and the same in ROOT/val (or validation), ROOT/test or both."""

import os
from pathlib import Path

import numpy as np

from data.errors import DataError
from data.readers.base import EncodedSource, Source

SPLITS = {"train": ("train",), "val": ("val", "validation"), "test": ("test",)}
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's list


class FolderSource(EncodedSource):
    """The images below `folder`, whose sub-folders are `classes`."""

    def __init__(self, folder: Path, classes: list[str]):
        names: list[str] = []
        counts = []
        for name in classes:
            images = list_images(folder, name)
            if not images:
                raise DataError(f"The class folder {folder / name} has no images; add some or remove it.")
            names += images
            counts.append(len(images))
        super().__init__(classes, np.repeat(np.arange(len(classes)), counts), names)
        self.folder = folder

    def read(self, i: int) -> bytes:
        return (self.folder / self.names[i]).read_bytes()


def published(root: Path) -> tuple[str, ...]:
    """Training, and validation or testing or both, going by the folders that there are.

    A folder test/ without a folder per class holds images whose classes are not known.
    """
    labelled = any(entry.is_dir() for entry in (root / "test").glob("*"))
    return ("train", *(["val"] if has_split(root, "val") else []), *(["test"] if labelled else []))


def has_split(root: Path, split: str) -> bool:
    """Whether there is a folder of `split`."""
    return any((root / name).is_dir() for name in SPLITS[split])


def open_split(root: Path, split: str) -> Source:
    """The images of `split`; classes are the sorted sub-folders of the training folder, labels their positions.

    Raises DataError for a missing or empty folder, an empty class, and a validation folder with other classes.
    """
    folder = split_folder(root, split)
    classes = list_classes(folder)
    if split != "train" and has_split(root, "train"):
        require_same_classes(list_classes(split_folder(root, "train")), classes, str(folder))
    return FolderSource(folder, classes)


def split_folder(root: Path, split: str) -> Path:
    """The folder of `split` below `root`; raises DataError naming what was looked for."""
    for name in SPLITS[split]:
        if (root / name).is_dir():
            return root / name
    usual = SPLITS[split] if split == "train" else ("val", "test", "validation")
    raise DataError(
        f"The data folder {root} has no sub-folder {' or '.join(usual)} with one folder per class; "
        "set data.root to the folder that has it."
    )


def require_same_classes(train: list[str], val: list[str], where: str) -> None:
    """Raise DataError where the classes of the validation set, found in `where`, are not those of the training set."""
    missing, extra = sorted(set(train) - set(val)), sorted(set(val) - set(train))
    if missing:
        raise DataError(f"Validation has no images of {listed(missing)} ({where}); add them, or drop training's.")
    if extra:
        raise DataError(f"Training has no images of {listed(extra)} ({where}); remove them from validation.")


def list_classes(folder: Path) -> list[str]:
    """Sorted names of the sub-folders; raises DataError if there are none."""
    with os.scandir(folder) as entries:
        classes = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise DataError(f"The folder {folder} is empty: it should hold one folder of images per class.")
    return classes


def list_images(folder: Path, name: str) -> list[str]:
    """Sorted paths of the images below `folder/name`, relative to `folder`, with forward slashes; raises OSError."""

    def fail(error: OSError) -> None:
        raise error  # by itself, os.walk passes over folders that it may not read

    found = []
    for parent, _, files in os.walk(folder / name, onerror=fail, followlinks=True):
        below = Path(parent).relative_to(folder).as_posix()
        found += [f"{below}/{file}" for file in files if is_image(file)]
    return sorted(found)


def is_image(name: str) -> bool:
    """Whether the file name is that of an image (hidden files are not)."""
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def listed(classes: list[str], shown: int = 5) -> str:
    """The first names and the number of the others, for a sentence."""
    more = f" and {len(classes) - shown} more" if len(classes) > shown else ""
    return ("class " if len(classes) == 1 else "classes ") + ", ".join(classes[:shown]) + more

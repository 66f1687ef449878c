"""What a data set is, before any of it is read: its classes and sizes."""

from dataclasses import dataclass

from data import files
from data.config import DataConfig
from data.readers import open_source
from data.readers.folder import require_same_classes


@dataclass(frozen=True)
class DataInfo:
    """Classes in label order, and the number of images of each split."""

    classes: list[str]
    train: int
    val: int


def inspect(data: DataConfig) -> DataInfo:
    """Classes and sizes, from the sidecars of the .beton files where the run reads those, else from the originals.

    Raises DataError for a missing or empty folder, a class without images, classes that differ between training and
    validation, and a .beton file that may not be used.
    """
    train, train_count = _split(data, "train")
    val, val_count = _split(data, "val")
    require_same_classes(train, val, data.root)
    return DataInfo(train, train_count, val_count)


def _split(data: DataConfig, split: str) -> tuple[list[str], int]:
    from_beton = data.loader == "ffcv" and (split == "train" or data.eval_source == "beton")
    path = files.beton(data, split)
    if from_beton and path.exists() and (files.is_complete(path) or not data.write_if_missing):
        sidecar = files.check(path, data, split)
        return sidecar.classes, sidecar.count
    source = open_source(data, split)
    return source.classes, len(source)

"""What a data set is, before any of it is read: its classes and sizes, and which images a run will see."""

import hashlib
import json
from dataclasses import dataclass

import numpy as np

from data import beton, files
from data.batches import check_loader
from data.config import DataConfig
from data.errors import DataError
from data.readers.folder import require_same_classes
from data.splits import open_source, splits, training_indices


@dataclass(frozen=True)
class DataInfo:
    """Classes in label order, and the number of images of each split."""

    classes: list[str]
    train: int
    val: int
    test: int | None = None  # of a run that has a test set (`data.splits`)


def inspect(data: DataConfig) -> DataInfo:
    """Classes and sizes, from the sidecars of the .beton files where the run reads those, else from the originals.

    Raises DataError for a missing or empty folder, a class without images, classes that differ between training and
    validation or testing, and a .beton file that may not be used.
    """
    check_loader(data)
    found = {split: _split(data, split) for split in splits(data)}
    classes = found["train"][0]
    for split in found:
        require_same_classes(classes, found[split][0], data.root)
    return DataInfo(classes, **{split: count for split, (_, count) in found.items()})


def fingerprint(data: DataConfig) -> dict[str, str]:
    """For each split, 64 bits (hexadecimal) of what decides about its images. Call it after `prepare`.

    Of a .beton file: what its sidecar says and what `data.beton.probe` sees, so that a replaced file is noticed even if
    it has the old one's size and sidecar. Where the file lies, its times and `data.stage` do not count. Of original
    images: their classes, names and order, which are known without opening a file; an image that was exchanged under
    its name is not noticed. Raises DataError as `inspect` does.
    """
    return {split: _fingerprint(data, split) for split in splits(data)}


def _fingerprint(data: DataConfig, split: str) -> str:
    if _from_beton(data, split):
        path = files.beton(data, split)
        sidecar = files.check(path, data, split)
        indices = training_indices(data, sidecar.labels) if split == "train" else np.arange(sidecar.count)
        part = [] if len(indices) == sidecar.count else [indices.tolist()]
        try:
            return _digest(sidecar.sha256, sidecar.classes, beton.probe(path), *part)
        except OSError as error:
            raise DataError(
                f"{path} cannot be read ({error.strerror}); check its permissions, or set data.root to a copy."
            ) from error
    source = open_source(data, split)
    return _digest(source.classes, source.labels.tolist(), source.names)


def _digest(*content: str | list) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _split(data: DataConfig, split: str) -> tuple[list[str], int]:
    path = files.beton(data, split)
    if _from_beton(data, split) and path.exists() and (files.is_complete(path) or not data.write_if_missing):
        sidecar = files.check(path, data, split)
        count = len(training_indices(data, sidecar.labels)) if split == "train" else sidecar.count
        return sidecar.classes, count
    source = open_source(data, split)
    return source.classes, len(source)


def _from_beton(data: DataConfig, split: str) -> bool:
    """Whether the run reads `split` from its .beton file."""
    return data.loader != "torch" and (split == "train" or data.eval_source == "beton")

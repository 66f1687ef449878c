"""Which images a run trains, validates and tests on: as published, or drawn from those by `data.split_seed` alone.

A run has the splits train and val, and test where that is another set than val:

| setting                           | train          | val                                   | test                |
|-----------------------------------|----------------|---------------------------------------|---------------------|
| as published                      | the published  | the published, else the published test| the other, if any   |
| data.holdout=0.1                  | the rest       | a tenth of each training class        | what val was before |
| data.split=pooled                 | 70 % of all    | 15 % of all                           | 15 % of all         |

The three numbers of pooled are rounded down, as in the released script of GAB, so that one or two images may be in no
split.
`data.fraction` then leaves that share of each class to train on; a smaller share is a part of a larger one. Draws are
hashes of an image's position in its set (`data.order`), and so functions of the labels alone: the same for every run
seed. An image keeps its position in the whole training set, which keys its crops and augmentation.
"""

import numpy as np

from data import readers
from data.config import DataConfig
from data.errors import DataError
from data.order import hash_of
from data.readers.base import Source, Subset

POOL = "pool"  # stands for all images of the data set
POOLED, HOLDOUT, FRACTION = 1, 2, 3  # separate the random numbers of a seed by what they are for
METRICS = ("top1", "mean_per_class")


def check_splits(data: DataConfig) -> None:
    """Raise DataError where a setting of the splits is impossible, or impossible with another."""
    if data.split not in ("official", "pooled"):
        raise DataError(f"data.split is {data.split!r}; set it to official or pooled.")
    if not 0 <= data.holdout < 1:
        raise DataError(f"data.holdout is {data.holdout}; set a share of the training images, from 0 to below 1.")
    if not 0 < data.fraction <= 1:
        raise DataError(f"data.fraction is {data.fraction}; set a share of the training images, above 0 and up to 1.")
    if not 0 <= data.split_seed < 2**63:
        raise DataError(f"data.split_seed is {data.split_seed}; set a whole number from 0 to 2^63 - 1.")
    if data.split == "pooled" and data.holdout:
        raise DataError(
            "data.split=pooled has a validation set of its own, from which data.holdout takes nothing; set "
            "data.holdout=0, or data.split=official."
        )
    if data.metric not in METRICS:
        raise DataError(f"data.metric is {data.metric!r}; set it to {' or '.join(METRICS)}.")


def splits(data: DataConfig) -> tuple[str, ...]:
    """The splits that a run has: train, val and, where there is a further set, test. Raises DataError."""
    check_splits(data)
    published = len(readers.published(data))
    has_test = data.split == "pooled" or published == 3 or (data.holdout > 0 and published == 2)
    return ("train", "val", "test") if has_test else ("train", "val")


def validates_on_test(data: DataConfig) -> bool:
    """Whether a run validates on the published test images, for want of others. Raises DataError."""
    return _origin(data, "val") == "test"


def may_share(data: DataConfig, split: str, other: DataConfig, other_split: str) -> bool:
    """Whether two splits are drawn from the same published images, and so may share some. Raises DataError."""
    origins = {_origin(data, split), _origin(other, other_split)}
    return len(origins) == 1 or POOL in origins


def require_split(data: DataConfig, split: str) -> None:
    """Raise DataError if a run has no such split."""
    if split not in splits(data):
        raise DataError(
            f"data={data.name} has no split {split!r}; choose {' or '.join(splits(data))}"
            f"{', or make one by data.holdout=0.1' if split == 'test' else ''}."
        )


def open_source(data: DataConfig, split: str) -> Source:
    """The original images of `split` (train | val | test).

    Raises DataError if there is no such split, or images are missing, may not be read, or are not as they should be.
    """
    require_split(data, split)
    whole = _open(data, _origin(data, split))
    indices = _indices(data, split, whole.labels)
    return whole if len(indices) == len(whole) else Subset(whole, indices)


def open_training(data: DataConfig) -> Source:
    """The whole set that the training images are in (`training_indices` says where); a .beton file holds all of it."""
    return _open(data, _origin(data, "train"))


def training_indices(data: DataConfig, labels: np.ndarray) -> np.ndarray:
    """Ascending positions of the images to train on in the set of `open_training`, whose labels these are; int64."""
    return _indices(data, "train", labels)


def _open(data: DataConfig, origin: str) -> Source:
    return readers.open_pool(data) if origin == POOL else readers.open_published(data, origin)


def _origin(data: DataConfig, split: str) -> str:
    """The published split that the images of `split` are in, or the pool."""
    check_splits(data)
    if data.split == "pooled":
        return POOL
    published = readers.published(data)
    if data.holdout and len(published) == 3:
        raise DataError(
            f"data={data.name} has published validation and test sets, so nothing need be held out; set data.holdout=0."
        )
    if split == "train" or (data.holdout and split == "val"):
        return "train"
    if data.holdout:
        return published[-1]
    return split if split in published else "test"


def _indices(data: DataConfig, split: str, labels: np.ndarray) -> np.ndarray:
    """Indices of the images of `split` in the set of `_origin`."""
    check_splits(data)
    if data.split == "pooled":
        chosen = _pooled(data.split_seed, split, len(labels))
    elif data.holdout and split in ("train", "val"):
        held = _share_of_each_class(data, HOLDOUT, data.holdout, labels)
        chosen = np.flatnonzero(held == (split == "val"))
        _require_images(data, labels, np.flatnonzero(~held))
    else:
        chosen = np.arange(len(labels))
    if split == "train" and data.fraction < 1:
        chosen = chosen[_share_of_each_class(data, FRACTION, data.fraction, labels[chosen])]
    return chosen


def _pooled(seed: int, split: str, count: int) -> np.ndarray:
    """Sorted indices of 70, 15 and 15 % of `count` images to train, validate, test on, rounded as by GAB's script."""
    mixed = np.argsort(hash_of(seed, POOLED, np.arange(count)))
    train, share = int(count * 0.7), int(count * 0.15)  # of floats: 5,732 of 8,189
    parts = {"test": mixed[:share], "val": mixed[share : 2 * share], "train": mixed[2 * share :][:train]}
    return np.sort(parts[split])


def _share_of_each_class(data: DataConfig, purpose: int, share: float, labels: np.ndarray) -> np.ndarray:
    """A mask of `share` of the images of each class, to the nearest number, but at least one."""
    order = np.lexsort((hash_of(data.split_seed, purpose, np.arange(len(labels))), labels))
    counts = np.bincount(labels)
    place = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)  # within its class
    chosen = np.zeros(len(labels), bool)
    chosen[order] = place < np.maximum(1, np.floor(share * counts + 0.5))[labels[order]]
    return chosen


def _require_images(data: DataConfig, labels: np.ndarray, rest: np.ndarray) -> None:
    """Raise DataError if a hold-out, but for the images `rest`, takes all of a class."""
    counts = np.bincount(labels)
    lacking = np.flatnonzero((np.bincount(labels[rest], minlength=len(counts)) == 0) & (counts > 0))
    if len(lacking):
        raise DataError(
            f"data.holdout={data.holdout:g} leaves no training image of class {lacking[0]}; lower it, or add images."
        )

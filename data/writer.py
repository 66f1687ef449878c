"""Writes one split of a data set as a .beton file with its sidecar: complete and checked, or not at all."""

import errno
import importlib.metadata
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data import disk, files
from data.beton import BetonWriter, page_size
from data.config import DataConfig
from data.errors import DataError
from data.readers.base import Source, UnreadableImage
from data.splits import open_source, open_training
from data.stored import StoredImage, encode_raw, encode_train
from data.transforms import eval_image

Encoder = Callable[[int], StoredImage]
Result = StoredImage | UnreadableImage
INTERVAL = 60.0  # seconds between two lines about a file that is being written, where there is no terminal for a bar


def write_split(
    data: DataConfig, split: str, workers: int | None = None, skip_unreadable: bool = False, force: bool = False
) -> Path:
    """Write the .beton file of `split` (train | val | test) from the original images; returns its path.

    A file that is there, whole and of the same settings is left alone unless `force`; processes that want the same
    file at once wait for the first of them. Decoding and encoding run in `workers` threads (default: one per core of
    this process's affinity; Pillow lets them run at once); the bytes do not depend on their number. Raises DataError if
    images cannot be read (each is listed on standard error, and recorded in the sidecar instead with
    `skip_unreadable`), if the disk is full, or if writing is not allowed.
    """
    if workers is not None and workers < 1:
        raise DataError(f"{workers} workers cannot write anything; give at least 1.")
    path = files.beton(data, split)
    if force or not files.is_complete(path):
        source = open_training(data) if split == "train" else open_source(data, split)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with disk.locked(path, needed=False):  # not every network's file system has locks
                if force or not files.is_complete(path):
                    _write(path, data, split, source, workers, skip_unreadable)
        except OSError as error:
            raise _disk_error(error, path) from error
    files.check(path, data, split)
    return path


def _write(
    path: Path, data: DataConfig, split: str, source: Source, workers: int | None, skip_unreadable: bool
) -> None:
    """Write to a name beside `path`, then publish; nothing is left at that name."""
    aside = disk.beside(path, "part")
    aside.unlink(missing_ok=True)  # of a process that was killed
    try:
        expected = _expected_bytes(_encoder(data, split, source), len(source))
        disk.require_room(path, expected, "make room, or set data.root elsewhere")
        print(f"writing {path}: {len(source):,} images, once", file=sys.stderr, flush=True)
        indices, skipped, reencoded = _write_images(aside, data, split, source, workers, skip_unreadable)
        sidecar = _sidecar(aside, data, split, source, indices, skipped, reencoded)
        _publish(aside, path, sidecar, [source.names[i] for i in indices])
    finally:
        aside.unlink(missing_ok=True)


def _expected_bytes(encode: Encoder, count: int, probes: int = 32) -> int:
    """About what `count` images will take, going by some that are spread evenly over them."""
    sizes = []
    for i in np.linspace(0, count - 1, min(count, probes)).astype(int).tolist():
        with suppress(UnreadableImage):
            sizes.append(len(encode(i).data))
    return int(0.9 * count * np.mean(sizes)) if sizes else 0  # some less: refusing what would fit is worse


def _write_images(
    aside: Path, data: DataConfig, split: str, source: Source, workers: int | None, skip_unreadable: bool
) -> tuple[list[int], list[str], int]:
    """Returns the indices of the images written, the names of those left out, and how many are not original bytes."""
    indices: list[int] = []
    skipped: list[str] = []
    reencoded = 0
    encode = _encoder(data, split, source)
    largest = 3 * (data.write.max_size if split == "train" else data.image_size) ** 2
    with aside.open("wb") as file, BetonWriter(file, len(source), page_size(largest)) as beton:
        results = _in_order(encode, len(source), workers or len(os.sched_getaffinity(0)))
        for i, result in enumerate(_watched(results, len(source), split)):
            if isinstance(result, UnreadableImage):
                tqdm.write(str(result), file=sys.stderr)
                skipped.append(source.names[i])
            elif not skipped or skip_unreadable:
                beton.add(result, int(source.labels[i]))
                indices.append(i)
                reencoded += not result.original
        if skipped and not skip_unreadable:
            raise DataError(_unreadable(skipped, len(source), data, split))
    return indices, skipped, reencoded


def _watched(results: Iterator[Result], count: int, split: str) -> Iterator[Result]:
    """`results`, with a bar on a terminal, elsewhere a plain line now and then."""
    bar = tqdm(results, total=count, desc=f"writing {split}", unit="images", disable=None)
    said_at = time.monotonic()
    for i, result in enumerate(bar):
        if bar.disable and time.monotonic() - said_at >= INTERVAL:
            said_at = time.monotonic()
            print(f"writing {split}: {i:,} of {count:,} images", file=sys.stderr, flush=True)
        yield result


def _encoder(data: DataConfig, split: str, source: Source) -> Encoder:
    if split == "train":
        return partial(encode_train, source, write=data.write)

    def encode(i: int) -> StoredImage:
        return encode_raw(eval_image(source.image(i), data.image_size, data.eval_crop, data.eval_interpolation))

    return encode


def _in_order(encode: Encoder, count: int, workers: int) -> Iterator[Result]:
    """`encode` of 0 ... count - 1, in order, worked on by threads; UnreadableImage is handed out, not raised."""

    def attempt(i: int) -> Result:
        try:
            return encode(i)
        except UnreadableImage as error:
            return error

    ahead: deque[Future] = deque()  # bounded, so that a slow disk does not fill the memory
    with ThreadPoolExecutor(workers) as pool:
        try:
            for i in range(count):
                ahead.append(pool.submit(attempt, i))
                if len(ahead) > 8 * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _sidecar(
    aside: Path, data: DataConfig, split: str, source: Source, indices: list[int], skipped: list[str], reencoded: int
) -> files.Sidecar:
    counts, before = (
        np.bincount(labels, minlength=len(source.classes)) for labels in (source.labels[indices], source.labels)
    )
    empty = [name for name, count, had in zip(source.classes, counts, before, strict=True) if had and not count]
    if empty:
        raise DataError(f"No readable {split} image is left of {', '.join(empty)}; fix its files or remove the class.")
    return files.Sidecar(
        split=split,
        reader=data.reader,
        settings=files.settings(data, split),
        classes=source.classes,
        class_counts=counts.tolist(),
        count=len(indices),
        reencoded=reencoded,
        skipped=skipped,
        bytes=aside.stat().st_size,
        sha256=disk.checksum(aside),
        software={name: importlib.metadata.version(name) for name in ("numpy", "pillow")},
    )


def _publish(aside: Path, path: Path, sidecar: files.Sidecar, names: list[str]) -> None:
    """Move the file to its place; it comes last, so that a file with that name has all that goes with it."""
    path.unlink(missing_ok=True)  # with the new sidecar, an older file could be taken for the new one
    files.save_names(path, names)
    files.save_sidecar(path, sidecar)
    aside.replace(path)


def _unreadable(names: list[str], count: int, data: DataConfig, split: str, shown: int = 10) -> str:
    more = f" and {len(names) - shown} more (all listed above)" if len(names) > shown else ""
    command = files.write_command(data, split)
    return (
        f"{len(names)} of {count} images in {data.root} cannot be read: {', '.join(names[:shown])}{more}; "
        f"fix or remove them, or leave them out: {command} --skip-unreadable"
    )


def _disk_error(error: OSError, path: Path) -> DataError:
    """The sentence for a write that the disk or its permissions refused."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return DataError(
            f"There is no space left for {path} ({error.strerror}); free some, or set data.root elsewhere."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return DataError(f"{path} may not be written ({error.strerror}); set data.root to a folder that may be.")
    return DataError(
        f"{path} could not be written ({error.strerror or error}): set data.root, or GAB_DATA, to a folder that can."
    )

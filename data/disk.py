"""Large files that several processes may want at once: a lock, a checksum, enough room, and no half of a file."""

import fcntl
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tqdm import tqdm

from data.errors import DataError

CHUNK = 1 << 24  # bytes
PATIENCE = 5.0  # seconds that a lock is waited for before that is said


@contextmanager
def locked(path: Path, needed: bool = True) -> Iterator[None]:
    """Hold the lock of the file `path`; waits for the process that has it. The system frees a killed one's.

    Raises OSError where the lock file cannot be made, or the file system has no locks; the latter only if `needed`.
    """
    with beside(path, "lock").open("a") as file:
        try:
            _lock(file, path)
        except OSError:
            if needed:
                raise
        yield


def _lock(file: IO, path: Path) -> None:
    """Wait for the lock on the open `file`; says so where that takes longer than a moment. Raises OSError."""
    patient_until = time.monotonic() + PATIENCE
    while time.monotonic() < patient_until:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.05)
    print(f"waiting for another process, which writes {path}", file=sys.stderr, flush=True)
    fcntl.flock(file, fcntl.LOCK_EX)


def beside(path: Path, kind: str) -> Path:
    """The hidden file of `kind` (lock | part) that goes with `path`."""
    return path.with_name(f".{path.name}.{kind}")


def save(path: Path, content: bytes) -> None:
    """Write the file `path`: whole, or not at all."""
    part = beside(path, "part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def require_room(path: Path, size: int, remedy: str) -> None:
    """Raise DataError, with `remedy`, if `size` more bytes do not fit where `path` is to be."""
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise DataError(
            f"{path.name} needs {size / 1e9:.1f} GB in {path.parent}, where {free / 1e9:.1f} GB are free; {remedy}."
        )


def copy(source: Path, target: Path) -> None:
    """Copy the contents of a file to disk, with a progress bar."""
    with source.open("rb") as original, target.open("wb") as file:
        with progress(source, "staging") as bar:
            while chunk := original.read(CHUNK):
                bar.update(file.write(chunk))
        file.flush()
        os.fsync(file.fileno())


def checksum(path: Path) -> str:
    """SHA-256 of a file, hexadecimal, with a progress bar."""
    digest = hashlib.sha256()
    with path.open("rb") as file, progress(path, "checksum") as bar:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def progress(path: Path, what: str) -> tqdm:
    """A progress bar in bytes of the file `path`, on a terminal only."""
    return tqdm(total=path.stat().st_size, desc=what, unit="B", unit_scale=True, disable=None)

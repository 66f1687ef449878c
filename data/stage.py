"""Copies .beton files to fast local disk, once per node, however many processes ask for them at once."""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from data import files
from data.config import DataConfig
from data.errors import DataError
from data.files import Sidecar

CHUNK = 1 << 24  # bytes


def ready(data: DataConfig, split: str) -> tuple[Path, Sidecar]:
    """The .beton file of `split` to read from, checked, and staged if `data.stage` is set; and its sidecar.

    Raises DataError if the file is missing or not to be used (see `files.check`), or cannot be staged.
    """
    path = files.beton(data, split)
    sidecar = files.check(path, data, split)
    return (stage(path, Path(data.stage).expanduser()) if data.stage else path), sidecar


def stage(path: Path, folder: Path) -> Path:
    """A copy of the .beton file `path`, with its sidecar, below the local `folder`; made only if it is not there yet.

    Processes of one node wait for the first of them. A copy that was cut short is made again; the lock of a process
    that was killed is released by the system. Raises DataError if the copy's checksum is not the sidecar's, if there
    is not enough space, or if `folder` cannot be written or locked.
    """
    sidecar = files.load_sidecar(path)
    target = folder / sidecar.sha256[:16] / path.name  # apart from files of the same name of another data set
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.with_name(f".{target.name}.lock")):
            if not _is_whole(target, sidecar):
                _copy(path, target, sidecar)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"{path} cannot be staged in {folder} ({reason}); set data.stage to a local disk.") from error
    return target


def _is_whole(target: Path, sidecar: Sidecar) -> bool:
    """Whether `target` is a finished copy: it was checked before it got its name, so its size is enough."""
    if not target.is_file() or not files.sidecar_path(target).is_file() or not files.names_path(target).is_file():
        return False
    return target.stat().st_size == sidecar.bytes and files.load_sidecar(target) == sidecar


def _copy(path: Path, target: Path, sidecar: Sidecar) -> None:
    aside = target.with_name(f".{target.name}.part")
    aside.unlink(missing_ok=True)  # of a process that was killed
    free = shutil.disk_usage(target.parent).free
    if free < sidecar.bytes:
        raise DataError(
            f"{path.name} needs {sidecar.bytes / 1e9:.1f} GB in {target.parent}, where {free / 1e9:.1f} GB are free; "
            "make room or unset data.stage."
        )
    try:
        if _copy_bytes(path, aside) != sidecar.sha256:
            raise DataError(
                f"{path} is not as its sidecar says (SHA-256); write it again: scripts/write_beton.py --force"
            )
        shutil.copyfile(files.names_path(path), files.names_path(target))
        shutil.copyfile(files.sidecar_path(path), files.sidecar_path(target))
        aside.replace(target)  # last: a file that has its name is complete
    finally:
        aside.unlink(missing_ok=True)


def _copy_bytes(path: Path, target: Path) -> str:
    """Copies the contents; returns the SHA-256 of what arrived."""
    with path.open("rb") as source, target.open("wb") as copy:
        with tqdm(total=path.stat().st_size, desc="staging", unit="B", unit_scale=True, disable=None) as progress:
            while chunk := source.read(CHUNK):
                progress.update(copy.write(chunk))
        copy.flush()
        os.fsync(copy.fileno())
    with target.open("rb") as copy:
        return hashlib.file_digest(copy, "sha256").hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`; waits for the process that has it."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

"""Copies .beton files to fast local disk, once per node, however many processes ask for them at once."""

import shutil
from pathlib import Path

from data import disk, files
from data.beton import probe, read_header
from data.config import DataConfig
from data.errors import DataError
from data.files import Sidecar


def ready(data: DataConfig, split: str) -> tuple[Path, Sidecar]:
    """The .beton file of `split` to read from, checked, and staged if `data.stage` is set; and its sidecar.

    Raises DataError if the file is missing or not to be used (see `files.check`), or cannot be staged.
    """
    path = files.beton(data, split)
    sidecar = files.check(path, data, split)
    if data.stage:
        again = f"{files.write_command(data, split)} --force"
        path = stage(path, Path(data.stage).expanduser(), sidecar, again)
    return path, sidecar


def stage(path: Path, folder: Path, sidecar: Sidecar, again: str) -> Path:
    """A copy of the .beton file `path`, with its sidecar, below the local `folder`; made only if it is not there yet.

    Processes of one node wait for the first of them. A copy that was cut short, or damaged later where `probe` sees it,
    is made again; the lock of a process that was killed is released by the system. Raises DataError if the copy's
    checksum is not the sidecar's, if there is not enough space, or if `folder` cannot be written or locked. `again` is
    the command that makes `path` anew.
    """
    target = folder / sidecar.sha256[:16] / path.name  # apart from files of the same name of another data set
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with disk.locked(target):
            if not _is_whole(target, path, sidecar):
                _copy(path, target, sidecar, again)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"{path} cannot be staged in {folder} ({reason}); set data.stage to a local disk.") from error
    return target


def _is_whole(target: Path, path: Path, sidecar: Sidecar) -> bool:
    """Whether `target` is a copy of `path`: its checksum was compared before it got its name, so a probe is enough."""
    if not files.is_complete(target) or target.stat().st_size != sidecar.bytes:
        return False
    try:
        same = files.load_sidecar(target) == sidecar
    except DataError:
        return False
    return same and read_header(target) == read_header(path) and probe(target) == probe(path)


def _copy(path: Path, target: Path, sidecar: Sidecar, again: str) -> None:
    aside = disk.beside(target, "part")
    for old in (target, aside):  # not whole, or of a process that was killed
        old.unlink(missing_ok=True)
    disk.require_room(target, sidecar.bytes, "make room or unset data.stage")
    try:
        disk.copy(path, aside)
        if disk.checksum(aside) != sidecar.sha256:
            raise DataError(f"{path} does not match its sidecar (SHA-256); write it again: {again}")
        shutil.copyfile(files.names_path(path), files.names_path(target))
        shutil.copyfile(files.sidecar_path(path), files.sidecar_path(target))
        aside.replace(target)  # last: a file that has its name is complete
    finally:
        aside.unlink(missing_ok=True)

"""The folder of the runs and the nodes' own disks: whether they take files, show them to all nodes, and how fast."""

import os
import secrets
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gab.distributed.processes import Processes

CHUNK = 1 << 24  # bytes


@dataclass(frozen=True)
class Disks:
    """The disks of one node; rates in bytes per second, None where measuring failed."""

    refused: str = ""  # why nothing can be written in run.dir; empty if it can
    shared: bool = True  # whether the file that the first process wrote there is seen here
    staging: float | None = None  # from run.dir, or where the .beton files lie, to the local disk
    stage_refused: str = ""
    writing: float | None = None  # of a checkpoint into run.dir; the first process's node only


def try_disks(processes: Processes, folder: Path, stage: Path, source: Path | None, size: int) -> Disks | None:
    """Write `size` bytes in `folder`, read them on every node, and copy as many to the node's folder `stage`.

    Returns None but in the first process of each node. They are copied from `source`, if given. All that was written is
    removed again.
    """
    place = folder / f".check_cluster_{processes.broadcast(secrets.token_hex(4))}"
    try:
        refused, writing = _write(place, size) if processes.first else ("", None)
        written = processes.broadcast(not refused)
        disks = None
        if processes.local_rank == 0:
            block = place / "block"
            shared = block.is_file() or not written
            if shared and not processes.first:
                refused, _ = _write(place / str(processes.rank), 1)
            original = source or block
            staging, stage_refused = _copy(original, stage, size) if original.is_file() else (None, "")
            disks = Disks(refused, shared, staging, stage_refused, writing)
        processes.barrier()
        return disks
    finally:
        if processes.local_rank == 0:
            shutil.rmtree(place, ignore_errors=True)


def _write(place: Path, size: int) -> tuple[str, float | None]:
    """Make the folder `place` with a file of `size` bytes; returns why that failed, and bytes a second."""
    try:
        place.mkdir(parents=True)
        block = os.urandom(min(size, CHUNK))  # nothing that a file system could compress
        start = time.perf_counter()
        with (place / "block").open("wb") as file:
            for written in range(0, size, CHUNK):
                file.write(block[: size - written])
            file.flush()
            os.fsync(file.fileno())
            seconds = time.perf_counter() - start
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # so that reading it comes from the disk
    except OSError as error:
        return error.strerror or str(error), None
    return "", size / seconds


def _copy(source: Path, stage: Path, size: int) -> tuple[float | None, str]:
    """Bytes a second of copying `size` bytes of the middle of `source` into the folder `stage`, or why it failed."""
    target = stage / f".check_cluster_{secrets.token_hex(4)}"
    try:
        stage.mkdir(parents=True, exist_ok=True)
        start, copied = time.perf_counter(), 0
        with source.open("rb") as original, target.open("wb") as file:
            original.seek(max(source.stat().st_size - size, 0) // 2)  # the beginning of a .beton file has been read
            while copied < size and (chunk := original.read(min(CHUNK, size - copied))):
                copied += file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        return copied / (time.perf_counter() - start), ""
    except OSError as error:
        return None, error.strerror or str(error)
    finally:
        with suppress(OSError):
            target.unlink()

"""Disks that are full or closed: a sentence, nothing lost, and the same command goes on when they are mended."""

import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from gab.errors import Stopped, UserError
from scripts.same_bits import differences
from tests.faults.conftest import SmallDisk

REMEDY = "make room"


def test_a_record_cannot_grow(
    small_run: Callable[..., Path], undisturbed: Path, at_step: Callable, tmp_path: Path
) -> None:
    """The disk takes a part of a row, which must not count as one."""
    record = tmp_path / "run" / "record.jsonl"
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (record.stat().st_size + 100, unlimited[1]))

    at_step(9, limit)
    try:
        with pytest.raises(UserError, match=rf"Cannot write {record} \(.*\): {REMEDY}"):
            small_run(tmp_path, "checkpoint.every_steps=null")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert not record.read_text().endswith("\n")
    assert differences(undisturbed, small_run(tmp_path)) == []


def test_a_disk_is_full_at_the_start(small_run: Callable[..., Path], small_disk: SmallDisk) -> None:
    small_disk.fill()
    with pytest.raises(UserError, match=r"cannot be written \(.*\): free space, or set run.dir"):
        small_run(small_disk.folder)


def test_a_disk_is_too_small(small_run: Callable[..., Path], small_disk: SmallDisk) -> None:
    small_disk.fill(leave=1 << 19)
    with pytest.raises(UserError, match=r"cannot be written \(0\.00 GB free, 0\.00 GB needed\)"):
        small_run(small_disk.folder)


def test_a_new_run_in_a_closed_place(small_run: Callable[..., Path], read_only_folder: Path) -> None:
    with pytest.raises(UserError, match="cannot be written .*(Read-only|Permission).*set run.dir to another place"):
        small_run(read_only_folder)


def test_a_run_whose_place_was_closed(
    small_run: Callable[..., Path], undisturbed: Path, small_disk: SmallDisk, at_step: Callable
) -> None:
    """As a file system that is mounted anew, read-only, after an error."""
    at_step(9, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped):
        small_run(small_disk.folder)
    small_disk.make_read_only()
    with pytest.raises(UserError, match="cannot be written .*Read-only"):
        small_run(small_disk.folder)
    small_disk.make_read_only(False)
    assert differences(undisturbed, small_run(small_disk.folder)) == []

"""Disks that are full or closed: a sentence, nothing lost, and the same command goes on when they are fixed."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import train
from gab.errors import Stopped, UserError
from gab.training import checkpoint
from scripts.same_bits import differences
from tests.conftest import ROOT
from tests.faults.conftest import SmallDisk

REMEDY = "make room"


@pytest.mark.parametrize(
    ("step", "leave", "what", "overrides"),
    [
        (12, 1 << 17, r"cannot write .*last\.pt \(No space left on device\)", []),  # takes every row, no checkpoint
        (20, 0, r"cannot write .*predictions\.npz \(No space left on device\)", ["checkpoint.every_steps=null"]),
    ],
    ids=["checkpoint", "predictions"],
)
def test_a_disk_gets_full(
    step: int,
    leave: int,
    what: str,
    overrides: list[str],
    small_run: Callable[..., Path],
    undisturbed: Path,
    small_disk: SmallDisk,
    at_step: Callable,
) -> None:
    at_step(step, lambda: small_disk.fill(leave))
    with pytest.raises(UserError, match=what) as caught:
        small_run(small_disk.folder, *overrides)
    assert REMEDY in str(caught.value)
    folder = small_disk.folder / "run"
    assert 0 < checkpoint.load(folder / "checkpoints" / "last.pt")["step"] <= step  # whole
    assert not list(folder.rglob("*.part"))
    small_disk.make_room()
    assert differences(undisturbed, small_run(small_disk.folder)) == []


def test_a_disk_gets_full_at_the_very_end(
    small_run: Callable[..., Path], undisturbed: Path, small_disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = train.figures.draw

    def fill_and_draw(*args: object) -> object:
        small_disk.fill()
        return draw(*args)

    with monkeypatch.context() as patch:
        patch.setattr(train.figures, "draw", fill_and_draw)
        with pytest.raises(UserError, match=r"cannot write .*figures \(No space left on device\)"):
            small_run(small_disk.folder)
    small_disk.make_room()
    assert differences(undisturbed, small_run(small_disk.folder)) == []


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


def test_a_file_cannot_grow(tiny_command: list[str], tmp_path: Path) -> None:
    """A quota, as a limit on the size of a file: also where nobody may mount. Here the command itself is read."""
    command = [sys.executable, str(ROOT / "train.py"), *tiny_command, f"run.dir={tmp_path}", "run.name=run"]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 17, 1 << 17))

    clean = {**os.environ, "GIT_DIR": str(tmp_path)}  # a developer's changes may be larger than that
    done = subprocess.run(
        command, cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=600, preexec_fn=limit
    )
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"error: cannot write {tmp_path}/run/checkpoints/last.pt (File too large): {REMEDY}")
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
    assert not list((tmp_path / "run").glob("lock.*"))


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


def test_half_a_config_is_never_left(
    small_run: Callable[..., Path], undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that is killed while it writes config.yaml would lock everyone out of the run: another config."""

    def begin_and_die(config: object, path: Path) -> None:
        path.write_text("model:")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(OmegaConf, "save", begin_and_die)
        with pytest.raises(KeyboardInterrupt):
            small_run(tmp_path)
    assert differences(undisturbed, small_run(tmp_path)) == []

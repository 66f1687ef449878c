"""Staging: one copy per node, checked, reused, and never in the way of the next run."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data import beton, disk, files, stage
from data.config import DataConfig
from data.errors import DataError
from data.writer import write_split
from gab.distributed import signals
from gab.errors import Stopped
from tests.fresh import FRESH

AGAIN = "python scripts/prepare.py folder --force"


@pytest.fixture
def staged_config(photo_config: DataConfig, tmp_path: Path) -> DataConfig:
    """A data set of one small .beton file, to be staged in a folder that does not exist yet."""
    root = shutil.copytree(photo_config.root, tmp_path / "photos", ignore=shutil.ignore_patterns("beton"))
    config = replace(photo_config, root=str(root), stage=str(tmp_path / "node" / "fast"))
    write_split(config, "val")
    return config


def stage_and_tell(path: Path, folder: Path, go, queue) -> None:
    """Stage slowly when all are at `go`; tell where, and whether this process made the copy."""
    copied = []
    copy = disk.copy

    def slow_copy(*arguments: Path) -> None:
        copied.append(True)
        time.sleep(1.0)
        copy(*arguments)

    disk.copy = slow_copy
    go.wait()
    queue.put((stage.stage(path, folder, files.load_sidecar(path), AGAIN), bool(copied)))


def stage_and_hang(path: Path, folder: Path, started) -> None:
    """Stage half of the file, then hang with the lock held."""

    def hang(source: Path, target: Path) -> None:
        content = source.read_bytes()
        target.write_bytes(content[: len(content) // 2])
        started.set()
        time.sleep(600)

    disk.copy = hang
    stage.stage(path, folder, files.load_sidecar(path), AGAIN)


def test_copy_is_the_file_and_is_reused(staged_config: DataConfig) -> None:
    original = files.beton(staged_config, "val")
    path, sidecar = stage.ready(staged_config, "val")
    assert path.is_relative_to(str(staged_config.stage))
    assert path.read_bytes() == original.read_bytes()
    assert files.check(path, staged_config, "val") == sidecar
    assert files.image_names(path) == files.image_names(original)
    before = path.stat().st_mtime_ns
    assert stage.ready(staged_config, "val") == (path, sidecar)
    assert path.stat().st_mtime_ns == before


def test_without_stage_the_file_itself(staged_config: DataConfig) -> None:
    path, _ = stage.ready(replace(staged_config, stage=None), "val")
    assert path == files.beton(staged_config, "val")


def test_another_file_of_the_same_name_is_staged_apart(staged_config: DataConfig) -> None:
    first, _ = stage.ready(staged_config, "val")
    next((Path(staged_config.root) / "val" / "sky").iterdir()).unlink()
    write_split(staged_config, "val", force=True)
    second, sidecar = stage.ready(staged_config, "val")
    assert first != second
    assert second.stat().st_size == sidecar.bytes
    assert second.read_bytes() == files.beton(staged_config, "val").read_bytes()


def page_start(path: Path) -> int:
    """Where the images begin, in bytes; the records lie before."""
    return int(np.fromfile(path, beton.HEADER, 1)["page_size"][0])


@pytest.mark.parametrize("damage", ["cut", "no sidecar", "no names", "garbage", "zeros", "header"])
def test_a_copy_that_is_not_whole_is_made_again(staged_config: DataConfig, damage: str) -> None:
    path, _ = stage.ready(staged_config, "val")
    if damage == "cut":
        os.truncate(path, 1000)
    elif damage == "garbage":
        files.sidecar_path(path).write_bytes(b"\xff\xfe")
    elif damage in ("zeros", "header"):  # of a node that lost power: the size is right
        os.truncate(path, page_start(path) if damage == "zeros" else 0)
        os.truncate(path, files.load_sidecar(path).bytes)
    else:
        (files.sidecar_path(path) if damage == "no sidecar" else files.names_path(path)).unlink()
    again, _ = stage.ready(staged_config, "val")
    assert again == path
    assert path.read_bytes() == files.beton(staged_config, "val").read_bytes()
    assert files.image_names(path)


def test_a_file_that_is_not_what_its_sidecar_says_is_refused(staged_config: DataConfig) -> None:
    original = files.beton(staged_config, "val")
    with original.open("r+b") as file:
        file.seek(-5000, os.SEEK_END)
        file.write(b"flipped")
    with pytest.raises(DataError, match=r"does not match its sidecar .*prepare\.py folder --root .* --force$"):
        stage.ready(staged_config, "val")
    assert not list(Path(str(staged_config.stage)).rglob("*.part"))
    assert not list(Path(str(staged_config.stage)).rglob("*.beton"))


def test_no_space_and_no_folder_are_sentences(staged_config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(staged_config.root)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
        with pytest.raises(DataError, match="make room or unset data\\.stage"):
            stage.ready(staged_config, "val")
    in_the_way = Path(staged_config.root) / "file"
    in_the_way.touch()
    with pytest.raises(DataError, match=r"cannot be staged in .*; set data\.stage to a local disk"):
        stage.ready(replace(staged_config, stage=str(in_the_way)), "val")


def test_processes_at_once_make_one_copy(staged_config: DataConfig) -> None:
    path, folder = files.beton(staged_config, "val"), Path(str(staged_config.stage))
    queue, go = FRESH.Queue(), FRESH.Barrier(2, timeout=60)
    processes = [FRESH.Process(target=stage_and_tell, args=(path, folder, go, queue)) for _ in range(2)]
    for process in processes:
        process.start()
    told = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(timeout=60)
    assert told[0][0] == told[1][0]
    assert sorted(copied for _, copied in told) == [False, True]
    assert told[0][0].read_bytes() == path.read_bytes()


def test_a_killed_holder_does_not_block(staged_config: DataConfig) -> None:
    path, folder = files.beton(staged_config, "val"), Path(str(staged_config.stage))
    started = FRESH.Event()
    holder = FRESH.Process(target=stage_and_hang, args=(path, folder, started))
    holder.start()
    assert started.wait(timeout=60)
    assert list(folder.rglob("*.part"))
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    holder.join(timeout=60)
    begun = time.monotonic()
    assert stage.stage(path, folder, files.load_sidecar(path), AGAIN).read_bytes() == path.read_bytes()
    assert time.monotonic() - begun < 10
    assert not list(folder.rglob("*.part"))


@pytest.mark.slow
@pytest.mark.ffcv
def test_a_run_goes_on_from_a_stage_that_it_began_without(
    tiny_run: Callable[..., Path], rows: Callable[..., list[dict]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With another number of workers, too; the copy that it finds there was cut short, and is made again."""
    pytest.importorskip("ffcv")
    root, node = tmp_path / "digits", tmp_path / "node"
    settings = ["data.loader=ffcv", f"data.root={root}", "train.max_steps=3"]
    with monkeypatch.context() as patch:
        patch.setattr(signals, "asked", lambda: signal.SIGUSR1)
        with pytest.raises(Stopped):
            tiny_run(tmp_path, *settings)
    [original] = root.rglob("train*.beton")
    copy = stage.stage(original, node, files.load_sidecar(original), AGAIN)
    os.truncate(copy, 1000)
    run = tiny_run(tmp_path, *settings, f"data.stage={node}", "run.workers=2")
    assert copy.read_bytes() == original.read_bytes()
    assert rows(run)[-1]["kind"] == "end"

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gab.errors import UserError
from gab.training import checkpoint
from gab.training.checkpoint_store import CheckpointStore, has_checkpoint

Open = Callable[..., CheckpointStore]


@pytest.fixture
def open_store(tmp_path: Path) -> Open:
    """`open_store()`: the store of one folder, as each start of a run opens it."""

    def make(keep: int = 1, check: Callable[[], None] = lambda: None) -> CheckpointStore:
        return CheckpointStore(tmp_path / "checkpoints", keep=keep, check=check)

    return make


def content(step: int) -> dict:
    return {"step": step, "model": {"w": torch.full((1000,), float(step))}}


def write(store: CheckpointStore, *steps: int, **names: bool) -> None:
    for step in steps:
        store.save(content(step), **names)
    store.wait()


def files(store: CheckpointStore) -> dict[str, int]:
    return {path.name: checkpoint.load(path)["step"] for path in sorted(store.folder.iterdir())}


@pytest.mark.parametrize("keep", [0, 1, 3])
def test_as_many_older_ones_as_wanted(keep: int, open_store: Open) -> None:
    store = open_store(keep)
    write(store, 3, 99_999_999, 100_000_000, 200_000_000, 300_000_000)
    older = [99_999_999, 100_000_000, 200_000_000][3 - keep :]
    assert files(store) == {"last.pt": 300_000_000, **{f"step_{step:08d}.pt": step for step in older}}


def test_a_start_goes_on_with_what_another_left(open_store: Open, tmp_path: Path) -> None:
    assert open_store().newest(pytest.fail) is None
    write(open_store(), 1, 2)
    again = open_store()
    path, found = again.newest(pytest.fail)
    assert (path.name, found["step"]) == ("last.pt", 2)
    write(again, 3)
    assert files(again) == {"last.pt": 3, "step_00000002.pt": 2}


def test_only_what_a_start_goes_on_from_is_a_checkpoint(open_store: Open, tmp_path: Path) -> None:
    """Else a run with a copy in its folder would neither go on from it nor begin with `init.source`."""
    store = open_store()
    assert not has_checkpoint(tmp_path)
    write(store, 1)
    store.last.rename(store.folder / "old_last.pt")
    assert store.newest(pytest.fail) is None
    assert not has_checkpoint(tmp_path)
    for name in ("best.pt", "step_00000001.pt", "last.pt"):
        (store.folder / "old_last.pt").rename(store.folder / name)
        assert store.newest(pytest.fail)
        assert has_checkpoint(tmp_path)
        (store.folder / name).rename(store.folder / "old_last.pt")


def test_the_best_is_one_more_name(open_store: Open) -> None:
    store = open_store()
    write(store, 1, best=True)
    assert os.path.samefile(store.folder / "best.pt", store.last)
    write(store, 2)
    write(store, 3, last=False, best=True)
    assert files(store) == {"best.pt": 3, "last.pt": 2, "step_00000001.pt": 1}


def test_the_best_without_links(open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    store = open_store()
    write(store, 1, best=True)
    assert files(store) == {"best.pt": 1, "last.pt": 1}


def test_training_goes_on_meanwhile(open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """`save` returns before the file is there, and what it holds is what was at that moment."""
    go, store, state = threading.Event(), open_store(), content(1)
    write_file = checkpoint.write

    def wait(*args) -> None:
        assert go.wait(120)
        write_file(*args)

    monkeypatch.setattr(checkpoint, "write", wait)
    store.save(state)
    state["model"]["w"].zero_()
    assert not store.last.exists()
    store.poll()
    go.set()
    store.wait()
    assert torch.equal(checkpoint.load(store.last)["model"]["w"], torch.ones(1000))


def test_a_name_is_given_last(open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the disk before it has a name; whoever may not write here any more gives none."""
    synced: list[int] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(os.fstat(descriptor).st_ino), fsync(descriptor)))

    def check() -> None:
        [aside] = [path for path in store.folder.iterdir() if path.name == ".last.pt.part"]
        assert synced == [aside.stat().st_ino]

    store = open_store(check=check)
    write(store, 1)
    assert synced == [store.last.stat().st_ino, store.folder.stat().st_ino]

    def refuse() -> None:
        raise UserError("another start has taken the folder")

    store.check = refuse
    with pytest.raises(UserError, match="another start"):
        write(store, 2)
    assert files(store) == {"last.pt": 1}


@pytest.mark.parametrize("ask", ["poll", "wait", "save"])
def test_a_full_disk_is_told_at_the_next_occasion(ask: str, open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store()
    write(store, 1)

    def full(path: Path, _) -> None:
        path.write_bytes(b"half a file")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write", full)
        store.save(content(2))
        threading.Event().wait(0.2)
        with pytest.raises(UserError, match=r"cannot write .*last\.pt \(No space left .*\): make room and repeat"):
            {"poll": store.poll, "wait": store.wait, "save": lambda: store.save(content(3))}[ask]()
    assert files(store) == {"last.pt": 1}
    write(store, 3)
    assert files(store) == {"last.pt": 3, "step_00000001.pt": 1}


def damage(path: Path) -> None:
    """In the middle of the numbers, where torch.load would not notice."""
    data = bytearray(path.read_bytes())
    data[data.index(torch.full((10,), float(checkpoint.load(path)["step"])).numpy().tobytes())] ^= 1
    path.write_bytes(data)


def test_a_damaged_file_gives_way_to_the_one_before(open_store: Open) -> None:
    store = open_store(keep=2)
    write(store, 1, 2, 3)
    damage(store.last)
    damage(store.folder / "step_00000002.pt")
    said: list[str] = []
    again = open_store(keep=2)
    path, found = again.newest(said.append)
    assert (path.name, found["step"]) == ("step_00000001.pt", 1)
    assert [text.rpartition("Going on from ")[2] for text in said] == [
        "the one before it, step_00000002.pt.",
        "the one before it, step_00000001.pt.",
    ]
    assert "is damaged" in said[0]
    write(again, 2)
    assert checkpoint.load(again.last)["step"] == 2


def test_a_file_that_runs_code_is_not_loaded(open_store: Open, tmp_path: Path) -> None:
    class Code:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    store = open_store()
    write(store, 1, 2)
    torch.save({"format": checkpoint.FORMAT, "step": 3, "model": Code()}, store.last)
    said: list[str] = []
    path, _ = open_store().newest(said.append)
    assert path.name == "step_00000001.pt"
    assert "would run code" in said[0]
    assert not (tmp_path / "ran").exists()


def test_the_best_is_the_last_resort(open_store: Open) -> None:
    store = open_store(keep=0)
    write(store, 1, best=True)
    write(store, 2)
    damage(store.last)
    assert open_store().newest(lambda _: None)[1]["step"] == 1
    damage(store.folder / "best.pt")
    with pytest.raises(UserError, match=r"best\.pt is not a checkpoint that can be read safely"):
        open_store().newest(lambda _: None)


def test_what_a_killed_process_began_is_removed(open_store: Open) -> None:
    store = open_store()
    write(store, 1)
    for name in (".last.pt.part", ".best.pt.part"):
        (store.folder / name).write_bytes(b"half")
    open_store().newest(pytest.fail)
    assert files(store) == {"last.pt": 1}

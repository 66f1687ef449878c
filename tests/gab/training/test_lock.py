"""The lock of a run's folder: one start at a time, and nobody locked out by the dead. Owners are real processes."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from gab.errors import UserError
from gab.training.lock import Owner, RunLock, _started
from tests.fresh import FRESH

QUICK = {"beat": 0.05, "patience": 0.6}

ELSEWHERE = replace(Owner.this_process(), host="n2", pid=4711, boot="another")
JOB = replace(ELSEWHERE, job="81_3", cluster="test")


def hold(folder: Path, said: Queue, owner: Owner | None = None, go: Barrier | None = None) -> None:
    """Take the lock when all are at `go`, and hold it for a minute; says `won`, or why not."""
    if go:
        go.wait()
    try:
        with RunLock(folder, owner=owner, say=lambda _: None, **QUICK):
            said.put("won")
            time.sleep(60)
    except UserError as error:
        said.put(str(error))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., BaseProcess]]:
    """`start(owner, go)`: another process that takes the lock; `start.said` is what they all say."""
    children = []
    said = FRESH.Queue()

    def make(owner: Owner | None = None, go: Barrier | None = None) -> BaseProcess:
        children.append(FRESH.Process(target=hold, args=(tmp_path, said, owner, go)))
        children[-1].start()
        return children[-1]

    make.said = said
    yield make
    for child in children:
        child.kill()
        child.join()


def lock(folder: Path, owner: Owner | None = None) -> RunLock:
    return RunLock(folder, owner=owner, say=lambda _: None, **QUICK)


def refused(folder: Path, owner: Owner | None = None) -> str:
    with pytest.raises(UserError) as caught, lock(folder, owner):
        pass
    return str(caught.value)


def leave_behind(folder: Path, owner: Owner, number: int = 1) -> Path:
    """The lock of a start that is gone."""
    path = folder / f"lock.{number}"
    path.write_bytes(RunLock(folder, owner=owner)._content())
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_it_is_there_while_held_and_gone_after(tmp_path: Path) -> None:
    with lock(tmp_path) as held:
        assert names(tmp_path) == ["lock.1"]
        held.check()
    assert names(tmp_path) == []
    with pytest.raises(RuntimeError), lock(tmp_path):
        raise RuntimeError
    assert names(tmp_path) == []


def test_a_living_owner_is_named(tmp_path: Path, start: Callable) -> None:
    child = start()
    assert start.said.get(timeout=60) == "won"
    text = refused(tmp_path)
    assert f"{tmp_path} is being trained by process {child.pid} on host" in text
    assert f"kill {child.pid}" in text
    assert names(tmp_path) == ["lock.1"]


def test_a_stopped_owner_is_alive(tmp_path: Path, start: Callable) -> None:
    """Its beat rests, but it would go on after SIGCONT."""
    child = start()
    assert start.said.get(timeout=60) == "won"
    os.kill(child.pid, signal.SIGSTOP)
    assert f"process {child.pid}" in refused(tmp_path)


def take_without_waiting(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLock, "_beats_seen", lambda *_: pytest.fail("nothing to wait for"))
        with lock(folder):
            assert names(folder) == ["lock.2"]


def test_a_killed_owner_is_no_trouble(tmp_path: Path, start: Callable) -> None:
    child = start()
    assert start.said.get(timeout=60) == "won"
    child.kill()
    child.join()
    take_without_waiting(tmp_path)


def test_a_zombie_is_no_trouble(tmp_path: Path) -> None:
    """Killed, and its parent has not asked for it yet."""
    with subprocess.Popen(["sleep", "60"]) as child:
        leave_behind(tmp_path, replace(Owner.this_process(), pid=child.pid, started=_started(child.pid)))
        assert "is being trained by" in refused(tmp_path)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        take_without_waiting(tmp_path)


def test_a_number_used_again_is_another_process(tmp_path: Path) -> None:
    leave_behind(tmp_path, replace(Owner.this_process(), started="1"))
    with lock(tmp_path):
        assert names(tmp_path) == ["lock.2"]


def test_hidden_processes_of_others_are_not_dead(tmp_path: Path) -> None:
    """With hidepid, /proc shows a user only his own."""
    other = replace(Owner.this_process(), user="somebody", pid=2**30)
    assert other.lives(Owner.this_process()) is None
    assert replace(other, user=Owner.this_process().user).lives(Owner.this_process()) is False


@pytest.mark.parametrize("stale", [False, True])
def test_of_many_starts_at_once_one_wins(stale: bool, tmp_path: Path, start: Callable) -> None:
    if stale:
        leave_behind(tmp_path, ELSEWHERE)
    go = FRESH.Barrier(8, timeout=60)
    children = [start(go=go) for _ in range(8)]
    said = [start.said.get(timeout=60) for _ in children]
    assert said.count("won") == 1
    assert sum("is being trained by" in text for text in said) == 7
    assert names(tmp_path) == ["lock.2" if stale else "lock.1"]


def test_an_owner_elsewhere_that_beats_is_alive(tmp_path: Path, start: Callable) -> None:
    start(replace(JOB, token="a"))
    assert start.said.get(timeout=60) == "won"
    sentences: list[str] = []
    with pytest.raises(UserError, match="process 4711 on host n2 .*SLURM job 81_3.*scancel 81_3"):
        RunLock(tmp_path, say=sentences.append, **QUICK).__enter__()
    assert len(sentences) == 1
    assert "waiting up to 0.6 s to see whether process 4711 on host n2" in sentences[0]


def test_an_owner_elsewhere_whose_beat_rests_is_dead(tmp_path: Path) -> None:
    leave_behind(tmp_path, ELSEWHERE)
    began = time.monotonic()
    with lock(tmp_path):
        assert names(tmp_path) == ["lock.2"]
    assert time.monotonic() - began >= QUICK["patience"]


def test_the_time_of_day_is_nobodys_business(tmp_path: Path, start: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of the owner's machine stands still in the past, ours goes backwards."""
    start(ELSEWHERE)
    assert start.said.get(timeout=60) == "won"
    os.utime(tmp_path / "lock.1", (0, 0))
    times = iter(range(10**9, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: next(times))
    assert "process 4711" in refused(tmp_path)


def test_a_disk_that_hangs_is_nobodys_death(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides wait for the same disk. When it comes back, we may look before the owner has written."""
    path = leave_behind(tmp_path, ELSEWHERE)
    looks: list[float] = []

    def hang(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 2:
            path.write_bytes(path.read_bytes().replace(b"0000", b"0001"))  # the owner goes on

    monkeypatch.setattr(time, "sleep", hang)
    clock = iter(range(0, 10**9, 3600))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    assert "process 4711" in refused(tmp_path)


def test_an_earlier_start_of_the_same_job_is_dead_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_behind(tmp_path, JOB)
    monkeypatch.setattr(RunLock, "_beats_seen", lambda *_: pytest.fail("nothing to wait for"))
    with lock(tmp_path, replace(JOB, host="n1", boot="third", restarts=1, token="b")):
        assert names(tmp_path) == ["lock.2"]


@pytest.mark.parametrize("other", [{"job": "81_4"}, {"cluster": "second"}, {"restarts": 0}])
def test_another_job_is_not(other: dict, tmp_path: Path) -> None:
    observer = replace(JOB, **{"host": "n1", "boot": "third", "restarts": 1, **other})
    assert JOB.lives(observer) is None


def test_slurm_names_a_member_of_an_array(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "90")
    assert Owner.this_process().job == "90"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "81")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert (Owner.this_process().job, Owner.this_process().restarts) == ("81_3", 2)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"beat": "000000000001", "version": 9}'])
def test_an_unreadable_lock_is_watched(content: bytes, tmp_path: Path) -> None:
    """A disk was full, or another version wrote it."""
    (tmp_path / "lock.4").write_bytes(content)
    with lock(tmp_path):
        assert names(tmp_path) == ["lock.5"]


def test_a_start_that_is_about_to_write_is_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock.1"
    path.touch()
    monkeypatch.setattr(time, "sleep", lambda _: leave_behind(tmp_path, Owner.this_process()))
    assert f"process {os.getpid()}" in refused(tmp_path)
    assert names(tmp_path) == [path.name]


def test_two_that_take_over_at_once_never_both_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another start takes lock.1 while this one is on its way to lock.5: it must withdraw."""
    leave_behind(tmp_path, replace(ELSEWHERE, token="dead"), number=4)
    rival = replace(Owner.this_process(), token="rival")
    judge = RunLock._refuse_living

    def judge_and_be_overtaken(self: RunLock, path: Path, content: bytes) -> None:
        judge(self, path, content)
        if path.name == "lock.4":
            path.unlink()
            leave_behind(tmp_path, rival)

    monkeypatch.setattr(RunLock, "_refuse_living", judge_and_be_overtaken)
    assert "is being trained by" in refused(tmp_path)
    assert names(tmp_path) == ["lock.1"]


def test_an_owner_that_slept_finds_out(tmp_path: Path, start: Callable) -> None:
    with lock(tmp_path, ELSEWHERE) as slept:
        slept._released.set()  # no beat from here on
        slept._thread.join()
        child = start()
        assert start.said.get(timeout=60) == "won"
        with pytest.raises(UserError, match=f"was taken over by process {child.pid} on host"):
            slept.check()
        slept._released.clear()
        slept._keep_beating()  # wakes up: returns, as the lock is gone
    assert names(tmp_path) == ["lock.2"]
    assert json.loads((tmp_path / "lock.2").read_text())["pid"] == child.pid


def test_a_lock_of_the_same_number_is_not_ours(tmp_path: Path) -> None:
    """Taken over, ended and started again while we slept: the number alone says nothing."""
    with lock(tmp_path) as slept:
        slept._released.set()
        slept._thread.join()
        path = leave_behind(tmp_path, ELSEWHERE)
        before = path.read_bytes()
        with pytest.raises(UserError, match="taken over by process 4711 on host n2"):
            slept.check()
        slept._released.clear()
        slept._keep_beating()
    assert path.read_bytes() == before


def test_a_beat_that_cannot_be_written_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[int] = []

    def fail_at_first(self: RunLock) -> bytes:
        if len(failures) < 2:
            failures.append(1)
            raise OSError("no space")
        return content(self)

    content = RunLock._content
    with lock(tmp_path) as held:
        before = (tmp_path / "lock.1").read_bytes()
        monkeypatch.setattr(RunLock, "_content", fail_at_first)
        deadline = time.monotonic() + 120
        while (tmp_path / "lock.1").read_bytes() == before and time.monotonic() < deadline:
            time.sleep(0.05)
        assert (tmp_path / "lock.1").read_bytes() != before
        held.check()
    assert failures == [1, 1]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write .*lock.*set run.dir"), lock(tmp_path / "missing"):
        pass


def test_a_full_disk_leaves_no_empty_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: RunLock) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunLock, "_content", full)
    assert "cannot write" in refused(tmp_path)
    assert names(tmp_path) == []

"""W&B's real client against a server that refuses, hangs, fails and dies: nothing stops, and nothing is lost."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gab.errors import STOPPED
from gab.tracking import session
from gab.tracking.session import core_processes
from tests.gab.tracking.peer import Peer

BLOCKED = 20.0  # seconds; far more than a busy machine needs for a row, and less than any limit of W&B's client


def evaluation(epoch: int) -> dict:
    return {"kind": "eval", "epoch": epoch, "step": 10 * epoch, "top1": 52.0 - abs(epoch - 2), "loss": 1.0 / epoch}


def await_true(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def slowest(run, epochs: range) -> float:
    """Logs epochs; the longest time that one of them took, seconds."""
    took = []
    for epoch in epochs:
        before = time.monotonic()
        run.log(evaluation(epoch))
        took.append(time.monotonic() - before)
    return max(took)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits of seconds in place of half a minute."""
    monkeypatch.setitem(session.DEFAULTS, "finish_timeout", 2)
    monkeypatch.setattr(session, "CONFIRMING", 1)


@pytest.fixture
def online(mirrored, folder: Path, peer: Peer) -> Callable:
    """Returns a function that starts the run, and waits until W&B has started too."""

    def begin(position: int | None = None):
        run = mirrored(folder, "online", position)
        await_true(lambda: run.mirror._session.is_open)
        return run

    return begin


def test_the_whole_run_is_there(online, folder: Path, peer: Peer, shown, expected) -> None:
    run = online()
    for epoch in (1, 2, 3):
        run.log(evaluation(epoch))
    assert run.finish() == f"W&B: {peer.url}/lab/gab/runs/{run.id}."
    assert run.warnings == []
    there = peer.runs[run.id]
    assert shown(there.rows) == expected(folder)
    assert there.state == "finished"
    assert there.summary["eval/top1"] == {"max": 52, "last": 51}


def test_a_run_that_was_stopped_is_preempted_until_it_goes_on(online, peer: Peer) -> None:
    first = online()
    first.log(evaluation(1))
    first.finish(exit_code=STOPPED)
    assert peer.runs[first.id].state == "preempted"
    second = online()
    assert peer.runs[first.id].state == "running"
    second.log(evaluation(2))
    second.finish()
    assert peer.runs[first.id].state == "finished"


def test_rows_that_a_rollback_repeats_are_there_once(online, folder: Path, peer: Peer, shown, expected) -> None:
    first = online()
    first.log(evaluation(1), evaluation(2))
    position = first.record.sync()
    first.log(evaluation(3), evaluation(4))
    first.finish(exit_code=1)
    second = online(position)
    for epoch in (3, 4, 5):
        second.log(evaluation(epoch))
    second.finish()
    assert list(peer.runs) == [first.id]
    assert shown(peer.runs[first.id].rows) == expected(folder)
    assert peer.runs[first.id].summary["eval/top1"]["max"] == 52  # of epoch 2; W&B counts from the second start


def test_rows_that_never_reached_the_server_are_sent_at_the_next_start(
    online, folder: Path, peer: Peer, shown, expected
) -> None:
    first = online()
    first.log(*map(evaluation, range(1, 6)))
    first.finish()
    there = peer.runs[first.id]  # as if it had been killed before the last two rows were sent
    del there.lines[3], there.lines[4]
    there.summary["_step"] = 2
    second = online()
    second.log(evaluation(6))
    second.finish()
    assert shown(peer.runs[first.id].rows) == expected(folder)


def test_the_next_start_completes_what_an_outage_left(
    online, mirrored, folder: Path, peer: Peer, shown, expected
) -> None:
    peer.behave(401)
    refused = mirrored(folder, "online")
    refused.log(evaluation(1), evaluation(2))
    assert refused.finish() == (
        f"W&B has received nothing of this start; send the run with `python scripts/wandb_resync.py {folder}`."
    )
    (warning,) = refused.warnings
    assert warning.startswith("W&B online did not start (")
    assert "401" in warning
    peer.behave("well")
    second = online()
    second.log(evaluation(3))
    assert second.finish() == f"W&B: {peer.url}/lab/gab/runs/{refused.id}."
    assert shown(peer.runs[second.id].rows) == expected(folder)


def test_rows_refused_in_the_middle_are_told(online, peer: Peer, impatient: None) -> None:
    run = online()
    run.log(evaluation(1))
    await_true(lambda: len(peer.runs[run.id].lines) == 1)
    peer.behave(403)
    assert slowest(run, range(2, 20)) < BLOCKED
    assert run.finish() == (  # although W&B's own `finish` returns as if all were well
        f"W&B: {peer.url}/lab/gab/runs/{run.id} may lack the last 19 of 19 rows; "
        f"send them with `python scripts/wandb_resync.py {run.folder}`."
    )


def test_a_server_that_hangs_slows_nothing_and_the_end_is_bounded(online, peer: Peer, impatient: None) -> None:
    run = online()
    run.log(evaluation(1))
    await_true(lambda: len(peer.runs[run.id].lines) == 1)
    peer.behave("hang")
    assert slowest(run, range(2, 50)) < BLOCKED
    before = time.monotonic()
    assert "may lack the last 49 of 49 rows; send them with" in run.finish()
    assert time.monotonic() - before < 60.0  # the peer answers after 120
    assert run.warnings == ["W&B did not take the last rows in time."]


def test_a_server_that_hangs_at_the_start_holds_up_nothing(mirrored, folder: Path, peer: Peer) -> None:
    peer.behave("hang")
    run = mirrored(folder, "online")
    assert slowest(run, range(1, 50)) < BLOCKED
    before = time.monotonic()
    assert "W&B has received nothing of this start; send the run with" in run.finish(timeout=3.0)
    assert time.monotonic() - before < 60.0  # the peer answers after 120
    (warning,) = run.warnings
    assert warning.startswith("W&B did not answer until the end of the run")
    assert core_processes() == []


def test_a_server_that_dies_and_comes_back_misses_nothing(online, folder: Path, peer: Peer, shown, expected) -> None:
    run = online()
    run.log(evaluation(1))
    await_true(lambda: len(peer.runs[run.id].lines) == 1)
    peer.stop()
    assert slowest(run, range(2, 6)) < BLOCKED
    time.sleep(1.5)  # W&B tries in vain meanwhile
    peer.start()
    run.log(evaluation(6))
    assert run.finish() == f"W&B: {peer.url}/lab/gab/runs/{run.id}."
    assert shown(peer.runs[run.id].rows) == expected(folder)


@pytest.mark.parametrize("rows_after", [0, 2])
def test_scancel_reaches_wandb_core_too_and_the_end_is_in_the_same_run(
    online, folder: Path, peer: Peer, shown, expected, rows_after: int
) -> None:
    run = online()
    run.log(*map(evaluation, range(1, 4)))
    (core,) = core_processes()
    os.kill(core, signal.SIGTERM)
    await_true(lambda: core not in core_processes())  # a row on its way has maybe started another one
    run.log(*map(evaluation, range(4, 4 + rows_after)))
    assert run.finish() == f"W&B: {peer.url}/lab/gab/runs/{run.id}."
    assert list(peer.runs) == [run.id]
    assert shown(peer.runs[run.id].rows) == expected(folder)
    assert peer.runs[run.id].state == "finished"

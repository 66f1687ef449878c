"""A W&B run is completed or built anew from the record, by the real client."""

import os
import signal
from pathlib import Path

import pytest
import wandb

from gab.errors import UserError
from gab.tracking import resync as resync_module
from gab.tracking.metrics import DashboardRows
from gab.tracking.record import Record
from gab.tracking.resync import REBUILT, mismatch, resync
from gab.tracking.session import core_processes
from gab.tracking.wandb_server import ServerRun, ask
from gab.training.lock import RunLock
from tests.gab.tracking.peer import Peer

START = {"kind": "start", "epoch": 0, "step": 0, "variant": "vit_gab", "seed": 3}
EVALUATIONS = [
    {"kind": "eval", "epoch": n, "step": 10 * n, "top1": top1} for n, top1 in ((1, 50.0), (2, 60.0), (3, 55.0))
]
END = {"kind": "end", "epoch": 3, "step": 30, "top1": 55.0, "gpu_hours": 0.5}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def offline(mirrored, folder: Path):
    """A finished run, of which W&B's server knows nothing."""
    run = mirrored(folder)
    run.log(START, *EVALUATIONS, END)
    run.finish()
    (folder / "figures").mkdir()
    (folder / "figures" / "top1.png").write_bytes(b"png")
    return run


def test_an_offline_run_is_sent_and_a_second_time_changes_nothing(
    offline, folder: Path, peer: Peer, shown, expected
) -> None:
    url = f"{peer.url}/lab/gab/runs/{offline.id}"
    assert resync(folder, "online") == f"{folder}: sent 4 of 4 rows, so W&B has all: {url}"
    there = peer.runs[offline.id]
    assert shown(there.rows) == expected(folder)
    assert [row["_step"] for row in there.rows] == [0, 1, 2, 3]
    assert there.state == "finished"
    assert there.summary["eval/top1"] == {"max": 60, "last": 55}
    assert there.files["figures/top1.png"] == b"png"
    assert there.config["variant"] == {"value": "vit_gab"}
    before = (dict(there.lines), dict(there.summary), list(peer.runs))
    assert resync(folder, "online") == f"{folder}: W&B has all 4 rows already: {url}"
    assert (there.lines, there.summary, list(peer.runs)) == before


def test_what_is_missing_is_appended(mirrored, folder: Path, peer: Peer, shown, expected) -> None:
    first = mirrored(folder, "online")
    first.log(START, EVALUATIONS[0], EVALUATIONS[1])
    first.finish(exit_code=1)
    record = Record(folder / "record.jsonl")
    for row in (EVALUATIONS[2], END):  # the rest of the run, without W&B
        record.write(**row)
    assert resync(folder, "online").startswith(f"{folder}: sent 2 of 4 rows")
    assert shown(peer.runs[first.id].rows) == expected(folder)
    assert peer.runs[first.id].summary["eval/top1"] == {"max": 60, "last": 55}
    assert peer.runs[first.id].state == "finished"


def test_a_run_that_fails_half_way_takes_no_rows_of_the_next(
    offline, folder: Path, mirrored, peer: Peer, shown, expected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = mirrored(tmp_path / "other")
    other.log(START, *EVALUATIONS, END)
    other.finish()

    def lose_wandb_core(*row: object, **options: object) -> None:
        (core,) = core_processes()
        os.kill(core, signal.SIGKILL)
        raise ConnectionResetError("Connection lost")

    with monkeypatch.context() as patch:
        patch.setattr(wandb.Run, "log", lose_wandb_core)
        with pytest.raises(UserError, match="did not take the run"):
            resync(folder, "online")
    assert resync(tmp_path / "other", "online").endswith(f"/{other.id}")
    assert shown(peer.runs[other.id].rows) == expected(tmp_path / "other")
    assert peer.runs[offline.id].rows == []


def test_a_gap_needs_a_new_run(offline, folder: Path, peer: Peer, shown, expected) -> None:
    resync(folder, "online")
    del peer.runs[offline.id].lines[1]
    with pytest.raises(UserError, match=f"run {offline.id} has 3 rows up to step 3, .* rebuild the run with --new"):
        resync(folder, "online")
    sentence = resync(folder, "online", new=True)
    new = (folder / "wandb_id").read_text().strip()
    assert new != offline.id
    assert f"a new W&B run: {peer.url}/lab/gab/runs/{new} (the old one, {offline.id}," in sentence
    assert shown(peer.runs[new].rows) == expected(folder)
    assert "has all 4 rows already" in resync(folder, "online")


def test_mismatches(offline, folder: Path) -> None:
    record = DashboardRows(folder / "record.jsonl")
    sample = ((0, 10), (3, 30))
    assert mismatch(ServerRun(), record, ended=True) is None
    assert mismatch(ServerRun(rows=4, lines=4, sample=sample), record, ended=True) is None
    assert "row 1 is of step 15 there, of step 20 here" in mismatch(
        ServerRun(rows=2, lines=2, sample=((0, 10), (1, 15))), record, ended=True
    )
    assert "some are missing or there twice" in mismatch(ServerRun(rows=4, lines=5), record, ended=True)
    assert "rebuild the run with --new" in mismatch(ServerRun(rows=6, lines=6), record, ended=True)
    assert "let it train on" in mismatch(ServerRun(rows=6, lines=6), record, ended=False)


def test_an_offline_copy_is_whole(offline, folder: Path, wandb_files, shown, expected) -> None:
    for _ in range(2):  # the second takes the place of the first
        assert f"wrote all 4 rows; send them with `wandb sync {folder}/{REBUILT}/wandb/offline-run-" in resync(
            folder, "offline"
        )
    found = wandb_files(folder / REBUILT)
    assert shown(found.rows) == expected(folder)
    assert [run.run_id for run in found.runs] == [offline.id]
    assert found.summary["eval/top1"] == {"max": 60.0, "last": 55.0}
    resync(folder, "offline", new=True)
    (run,) = wandb_files(folder / REBUILT).runs
    assert run.run_id == (folder / "wandb_id").read_text().strip() != offline.id


def test_a_run_that_is_being_trained_is_refused(offline, folder: Path) -> None:
    with RunLock(folder), pytest.raises(UserError, match="is being trained by"):
        resync(folder, "online")


@pytest.mark.parametrize("how", [401, 500])
def test_a_server_that_refuses_or_fails_is_a_sentence(
    offline, folder: Path, peer: Peer, monkeypatch: pytest.MonkeyPatch, how: int
) -> None:
    peer.behave(how)
    monkeypatch.setattr(resync_module, "ask", lambda *run: ask(*run, timeout=2))
    with pytest.raises(UserError, match=r"W&B did not take the run \(.*\): check your key"):
        resync(folder, "online")
    assert peer.runs == {}


def test_a_server_that_takes_no_rows_is_a_sentence(
    offline, folder: Path, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resync_module, "CONFIRMING", 0)
    monkeypatch.setattr(Peer, "_stream", lambda *arguments: None)
    with pytest.raises(UserError, match="W&B has 0 of 4 rows so far: .* repeat the command"):
        resync(folder, "online")


def test_other_folders_are_refused(tmp_path: Path, mirrored) -> None:
    with pytest.raises(UserError, match="is not the folder of a run .* give one like runs/NAME"):
        resync(tmp_path, "online")
    mirrored(tmp_path, "disabled").finish()
    with pytest.raises(UserError, match="has no start row, so there is nothing to send"):
        resync(tmp_path, "online")

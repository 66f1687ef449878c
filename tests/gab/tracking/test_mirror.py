import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import wandb

from gab.errors import UserError
from gab.tracking import mirror as mirror_module
from gab.tracking.config import TrackingConfig
from gab.tracking.metrics import metrics
from gab.tracking.mirror import Mirror
from gab.tracking.session import core_processes, resolve_mode

pytestmark = pytest.mark.usefixtures("no_account")
TRAIN = {
    "kind": "train",
    "epoch": 0.5,
    "step": 5,
    "samples": 40,
    "loss": 2.5,
    "lr": 1e-3,
    "mfu": None,
    "data_wait": 0.1,
}
EVAL = {"kind": "eval", "epoch": 1, "step": 10, "top1": 60.0, "top5": 90.0, "digest": "00ff", "sigma": [5.0, -4.0]}
EVAL |= {"amplitude": [2.0, 1.9]}
LATER = {"kind": "eval", "epoch": 2, "step": 20, "top1": 55.0, "top1_ema": 56.0, "sigma": [5.1, -4.1]}
END = {"kind": "end", "epoch": 2, "step": 20, "gpu_hours": 0.25}


START = {"kind": "start", "epoch": 0, "step": 0, "variant": "vit_gab", "seed": 3}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


def wait_for(condition) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def steps(rows: list[dict]) -> list[tuple]:
    return [(row["step"], "eval/top1" in row) for row in rows]


def test_names_of_metrics() -> None:
    assert metrics(TRAIN) == {
        "epoch": 0.5, "step": 5, "samples": 40, "train/loss": 2.5, "train/lr": 1e-3, "train/data_wait": 0.1
    }  # fmt: skip
    heads = {"kind": "eval", "epoch": 1, "loss": 1.0, "sigma": [[5.0, -4.0], [3.0, 2.0]], "amplitude": None}
    assert metrics(heads) == {
        "epoch": 1, "eval/loss": 1.0,
        "sigma/layer_01/head_01": 5.0, "sigma/layer_01/head_02": 4.0,
        "sigma/layer_02/head_01": 3.0, "sigma/layer_02/head_02": 2.0,
    }  # fmt: skip


def test_offline_run_read_back(folder: Path, mirrored, wandb_files, shown) -> None:
    run = mirrored(folder)
    run.log(START, TRAIN, EVAL, LATER, END)
    sentence = run.finish()
    found = wandb_files(folder)
    assert run.warnings == []
    assert sentence == f"W&B: kept in {folder}/wandb; send the run with `python scripts/wandb_resync.py {folder}`."
    assert shown(found.rows) == [metrics(row) for row in (TRAIN, EVAL, LATER, END)]
    assert {"sigma/layer_01", "sigma/layer_02", "amplitude/layer_01", "amplitude/layer_02"} < found.rows[1].keys()
    assert found.rows[1]["sigma/layer_02"] == 4.0
    assert found.config["variant"] == "vit_gab"
    assert found.config["seed"] == 3
    assert found.config["model"] == {"depth": 2}
    assert found.summary["gpu_hours"] == 0.25
    assert found.summary["eval/top1"] == {"max": 60.0, "last": 55.0}
    assert {(metric.glob_name, metric.step_metric) for metric in found.metrics if metric.glob_name} == {("*", "epoch")}
    assert {metric.step_metric for metric in found.metrics if metric.name.startswith("eval/")} == {"epoch"}
    assert found.exit_codes == [0]


def test_heads_read_back(folder: Path, mirrored, wandb_files) -> None:
    run = mirrored(folder)
    run.log(EVAL | {"sigma": [[5.0, 4.0]], "amplitude": [[2.0, 1.0]]})
    run.finish(exit_code=1)
    (row,) = wandb_files(folder).rows
    assert row["sigma/layer_01/head_02"] == 4.0
    assert row["amplitude/layer_01/head_01"] == 2.0
    assert wandb_files(folder).exit_codes == [1]


def test_the_config_beats_the_environment_which_beats_the_default(
    folder: Path, mirrored, wandb_files, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {"PROJECT": "p", "ENTITY": "e", "RUN_GROUP": "g", "TAGS": "a,b", "NOTES": "n", "NAME": "the-name"}
    mirrored(folder, project="ours").finish()
    for name, value in environment.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    mirrored(folder).finish()
    mirrored(folder, project="q", entity="f", group="h", tags=["c"], notes="m", name="other").finish()
    default, by_environment, by_config = wandb_files(folder).runs
    fields = ("project", "entity", "run_group", "tags", "notes", "display_name")

    def shown(run) -> list:
        return [list(getattr(run, field)) if field == "tags" else getattr(run, field) for field in fields]

    assert shown(default) == ["ours", "", "", [], "", "the-run"]
    assert shown(by_environment) == ["p", "e", "g", ["a", "b"], "n", "the-name"]
    assert shown(by_config) == ["q", "f", "h", ["c"], "m", "other"]


def test_a_resumed_run_keeps_its_id_and_logs_no_row_twice(folder: Path, mirrored, wandb_files) -> None:
    first = mirrored(folder)
    first.log(TRAIN)
    position = first.record.sync()
    first.log(EVAL)
    first.finish()
    second = mirrored(folder, position=position)
    second.log(EVAL, LATER)
    second.finish()
    found = wandb_files(folder)
    assert first.id == second.id == (folder / "wandb_id").read_text().strip()
    assert {run.run_id for run in found.runs} == {first.id}
    assert steps(found.rows) == [(5, False), (10, True), (20, True)]
    assert found.summary["eval/top1"] == {"max": 60.0, "last": 55.0}  # the best was in the first start


def test_an_id_whose_file_was_lost_comes_from_the_checkpoint(folder: Path, mirrored) -> None:
    first = mirrored(folder)
    first.finish()
    (folder / "wandb_id").unlink()
    without = mirrored(folder, "disabled", wandb_id=first.id)  # its checkpoints still know it
    without.finish()
    again = mirrored(folder, wandb_id=without.id)
    again.finish()
    assert first.id == without.id == again.id == (folder / "wandb_id").read_text().strip()


def test_another_log_every_after_a_rollback_is_told(folder: Path, mirrored) -> None:
    first = mirrored(folder)
    first.log(TRAIN, EVAL)
    first.finish()
    second = mirrored(folder, position=0)
    second.log(EVAL, LATER)  # its row 1 is of another step
    assert second.finish().endswith(f"rebuild it with `python scripts/wandb_resync.py {folder} --new`.")


@pytest.mark.parametrize(
    ("config", "environment", "mode"),
    [
        (None, {}, "offline"),
        (None, {"WANDB_MODE": "online"}, "online"),
        (None, {"WANDB_MODE": "dryrun"}, "offline"),
        ("disabled", {"WANDB_MODE": "online"}, "disabled"),
    ],
)
def test_mode(config: str | None, environment: dict[str, str], mode: str) -> None:
    assert resolve_mode(TrackingConfig(wandb=config), environment) == mode


def test_an_unknown_mode_is_a_sentence() -> None:
    with pytest.raises(UserError, match=r"tracking\.wandb=onlin is not .* online, offline or disabled"):
        resolve_mode(TrackingConfig(wandb="onlin"), {})
    with pytest.raises(UserError, match="WANDB_MODE=always is not"):
        resolve_mode(TrackingConfig(), {"WANDB_MODE": "always"})


@pytest.mark.parametrize("settings", [{"mode": "disabled"}, {"active": False}])
def test_disabled_and_on_other_ranks_nothing_happens(tmp_path: Path, settings: dict) -> None:
    tracking, active = TrackingConfig(wandb=settings.get("mode", "offline")), settings.get("active", True)
    before = set(threading.enumerate())
    mirror = Mirror(tmp_path, tracking, {}, variant="v", seed=0, name="n", warn=print, active=active)
    mirror.update()
    assert mirror.finish() is None
    assert mirror.id is None
    assert not list(tmp_path.glob("wandb*"))
    assert "wandb mirror" not in {thread.name for thread in set(threading.enumerate()) - before}


def test_without_the_package_there_is_one_warning(folder: Path, mirrored, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    run = mirrored(folder)
    run.log(TRAIN)
    assert run.finish() is None
    (warning,) = run.warnings
    assert warning.startswith("No W&B (import of wandb halted")


def test_a_slow_start_blocks_nobody(folder: Path, mirrored, wandb_files, monkeypatch: pytest.MonkeyPatch) -> None:
    go, init = threading.Event(), wandb.init

    def slow(**options) -> wandb.Run:
        assert go.wait(120)
        return init(**options)

    monkeypatch.setattr(wandb, "init", slow)
    run = mirrored(folder)
    run.log(TRAIN, EVAL)
    go.set()  # reached although W&B has not started
    run.finish()
    assert run.warnings == []
    assert steps(wandb_files(folder).rows) == [(5, False), (10, True)]


def test_an_error_in_log_costs_no_row(folder: Path, mirrored, wandb_files, monkeypatch: pytest.MonkeyPatch) -> None:
    log, fails = wandb.Run.log, [True]

    def flaky(self, *args, **kwargs) -> None:
        if fails.pop() if fails else False:
            raise ConnectionResetError("Connection lost")
        log(self, *args, **kwargs)

    monkeypatch.setattr(wandb.Run, "log", flaky)
    run = mirrored(folder)
    run.log(TRAIN, EVAL)
    run.finish()
    assert run.warnings == ["W&B failed (Connection lost): opening it again, offline."]
    assert steps(wandb_files(folder).rows) == [(5, False), (10, True)]


def test_wandb_may_call_exit(folder: Path, mirrored, wandb_files, monkeypatch: pytest.MonkeyPatch) -> None:
    """As its `teardown` does when wandb-core was killed."""
    log, teardown, fails = wandb.Run.log, wandb.teardown, [True]

    def flaky(self, *args, **kwargs) -> None:
        if fails.pop() if fails else False:
            raise ConnectionResetError("Connection lost")
        log(self, *args, **kwargs)

    def exiting() -> None:
        teardown()
        sys.exit(-9)

    run = mirrored(folder)
    with monkeypatch.context() as patch:
        patch.setattr(wandb.Run, "log", flaky)
        patch.setattr(wandb, "teardown", exiting)
        run.log(TRAIN, EVAL)
        run.finish()
    assert steps(wandb_files(folder).rows) == [(5, False), (10, True)]


def test_errors_without_end_are_given_up_and_counted(folder: Path, mirrored, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self, *args, **kwargs) -> None:
        raise ConnectionResetError

    monkeypatch.setattr(wandb.Run, "log", broken)
    run = mirrored(folder)
    run.log(TRAIN, EVAL, LATER)
    assert "but for the last 3 of 3 rows; send the run with `python scripts/wandb_resync.py" in run.finish()
    assert run.warnings[-1].endswith("giving up; the record of the run is whole.")
    assert {warning.rsplit(": ")[-1] for warning in run.warnings[:-1]} == {"opening it again, offline."}


def test_a_folder_that_cannot_be_written_is_one_warning(tmp_path: Path) -> None:
    warnings: list[str] = []
    tracking, missing = TrackingConfig(wandb="offline"), tmp_path / "missing"
    mirror = Mirror(missing, tracking, {}, variant="v", seed=0, name="n", warn=warnings.append)
    mirror.update()
    assert mirror.finish() is None
    assert len(warnings) == 1


def test_a_record_that_cannot_be_read_stops_the_mirror_only(folder: Path, mirrored) -> None:
    run = mirrored(folder)
    (folder / "record.jsonl").write_text("broken\nbroken\n")
    run.mirror.update()
    assert "cannot be read" in run.finish()
    (warning,) = run.warnings
    assert warning.startswith(f"W&B is given up, as {folder} cannot be read (")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])  # the second from scancel
@pytest.mark.parametrize("later", [[], [LATER]])
def test_a_killed_wandb_core_is_replaced(folder: Path, mirrored, wandb_files, number: int, later: list[dict]) -> None:
    first = mirrored(folder)
    first.log(TRAIN)
    first.finish()
    run = mirrored(folder)
    run.log(EVAL)
    wait_for(lambda: json.loads((folder / "wandb_logged").read_text())["rows"] == 2)
    (core,) = core_processes()
    os.kill(core, number)
    wait_for(lambda: core not in core_processes())
    cut = max(folder.glob("wandb/offline-run-*"))
    run.log(*later)
    if later:
        wait_for(lambda: json.loads((folder / "wandb_logged").read_text())["rows"] == 3)
        assert cut.exists()  # for a job that is killed before the new one is whole
    run.finish()
    assert len(run.warnings) == 1
    assert steps(wandb_files(folder).rows) == [(5, False), (10, True), (20, True)][: 2 + len(later)]
    assert len(list(folder.glob("wandb/offline-run-*"))) == 2


def test_a_hanging_wandb_core_is_replaced_and_blocks_nobody(
    folder: Path, mirrored, wandb_files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror_module, "HANGS_AFTER", 1.0)
    wide = {"kind": "train", "epoch": 0.5, "sigma": [[5.0] * 16] * 24}
    run = mirrored(folder)
    run.log({**wide, "step": 1})
    wait_for((folder / "wandb_logged").exists)
    (core,) = core_processes()
    os.kill(core, signal.SIGSTOP)
    step, slowest = 2, 0.0
    deadline = time.monotonic() + 240
    while core in core_processes():  # until the mirror has got rid of it
        before = time.monotonic()
        assert before < deadline
        run.log({**wide, "step": step})
        slowest = max(slowest, time.monotonic() - before)
        step += 1
        time.sleep(0.002)
    assert slowest < 20.0  # it would have been for ever
    run.log({**wide, "step": step})
    run.finish()
    assert wandb_files(folder).rows[-1]["step"] == step


def test_a_wandb_core_that_ends_before_it_is_ended_is_no_error(
    folder: Path, mirrored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror_module, "HANGS_AFTER", 0.0)
    run = mirrored(folder)
    ended = subprocess.Popen(["true"])
    ended.wait()
    monkeypatch.setattr("gab.tracking.session.core_processes", lambda: [ended.pid])
    run.log(TRAIN)  # while W&B starts, which is too long now
    run.finish()
    assert run.warnings == []


def test_a_wandb_core_that_hangs_at_the_end_is_ended(folder: Path, mirrored) -> None:
    run = mirrored(folder)
    run.log(TRAIN)
    wait_for((folder / "wandb_logged").exists)
    (core,) = core_processes()
    os.kill(core, signal.SIGSTOP)
    before = time.monotonic()
    assert "send the run with" in run.finish(timeout=2.0)
    assert time.monotonic() - before < 60.0  # it would have been for ever
    assert core_processes() == []
    assert len(run.warnings) == 1

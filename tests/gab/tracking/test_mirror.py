import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import wandb

from gab.errors import UserError
from gab.tracking import mirror as mirror_module
from gab.tracking.config import TrackingConfig
from gab.tracking.mirror import Mirror, metrics
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


class Warnings(list):
    def __call__(self, text: str) -> None:
        self.append(text)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.fixture
def warnings() -> Warnings:
    return Warnings()


def make(folder: Path, warn: Warnings, mode: str | None = "offline", **settings) -> Mirror:
    config = {"model": {"depth": 2}, "train": {"epochs": 2}}
    tracking = TrackingConfig(wandb=mode, **settings)
    return Mirror(folder, tracking, config, variant="vit_gab", seed=3, name="the-run", warn=warn)


def wait_for(condition) -> None:
    deadline = time.monotonic() + 30
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


def test_offline_run_read_back(folder: Path, warnings: Warnings, wandb_files) -> None:
    mirror = make(folder, warnings)
    for row in ({"kind": "start", "epoch": 0, "step": 0}, TRAIN, EVAL, LATER, END):
        mirror.log(row)
    sentence = mirror.finish()
    found = wandb_files(folder)
    assert warnings == []
    assert sentence == (
        f"W&B: kept in {folder}/wandb; upload with `wandb sync {folder}/wandb/*run-*-{mirror.id}*`."
    )  # fmt: skip
    assert [{key: value for key, value in row.items() if key[0] != "_"} for row in found.rows] == [
        metrics(row) for row in (TRAIN, EVAL, LATER, END)
    ]
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


def test_heads_read_back(folder: Path, warnings: Warnings, wandb_files) -> None:
    mirror = make(folder, warnings)
    mirror.log(EVAL | {"sigma": [[5.0, 4.0]], "amplitude": [[2.0, 1.0]]})
    mirror.finish(exit_code=1)
    (row,) = wandb_files(folder).rows
    assert row["sigma/layer_01/head_02"] == 4.0
    assert row["amplitude/layer_01/head_01"] == 2.0
    assert wandb_files(folder).exit_codes == [1]


def test_the_config_beats_the_environment_which_beats_the_default(
    folder: Path, warnings: Warnings, wandb_files, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {"PROJECT": "p", "ENTITY": "e", "RUN_GROUP": "g", "TAGS": "a,b", "NOTES": "n", "NAME": "the-name"}
    make(folder, warnings, project="ours").finish()
    for name, value in environment.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    make(folder, warnings).finish()
    make(folder, warnings, project="q", entity="f", group="h", tags=["c"], notes="m", name="other").finish()
    default, by_environment, by_config = wandb_files(folder).runs
    fields = ("project", "entity", "run_group", "tags", "notes", "display_name")

    def shown(run) -> list:
        return [list(getattr(run, field)) if field == "tags" else getattr(run, field) for field in fields]

    assert shown(default) == ["ours", "", "", [], "", "the-run"]
    assert shown(by_environment) == ["p", "e", "g", ["a", "b"], "n", "the-name"]
    assert shown(by_config) == ["q", "f", "h", ["c"], "m", "other"]


def test_a_resumed_run_keeps_its_id_and_logs_no_row_twice(folder: Path, warnings: Warnings, wandb_files) -> None:
    first = make(folder, warnings)
    for row in (TRAIN, EVAL):
        first.log(row)
    first.finish()
    second = make(folder, warnings)
    for row in (TRAIN, EVAL, LATER):
        second.log(row)
    second.finish()
    found = wandb_files(folder)
    assert first.id == second.id == (folder / "wandb_id").read_text().strip()
    assert {run.run_id for run in found.runs} == {first.id}
    assert steps(found.rows) == [(5, False), (10, True), (20, True)]


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
def test_disabled_and_on_other_ranks_nothing_happens(folder: Path, warnings: Warnings, settings: dict) -> None:
    tracking = TrackingConfig(wandb=settings.get("mode", "offline"))
    active = settings.get("active", True)
    mirror = Mirror(folder, tracking, {}, variant="v", seed=0, name="n", warn=warnings, active=active)
    mirror.log(TRAIN)
    assert mirror.finish() is None
    assert mirror.id is None
    assert list(folder.iterdir()) == []
    assert "wandb mirror" not in {thread.name for thread in threading.enumerate()}


def test_without_the_package_there_is_one_warning(
    folder: Path, warnings: Warnings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    mirror = make(folder, warnings)
    mirror.log(TRAIN)
    assert mirror.finish() is None
    (warning,) = warnings
    assert warning.startswith("No W&B (import of wandb halted")


def test_online_without_a_key_goes_on_offline(folder: Path, warnings: Warnings, wandb_files) -> None:
    mirror = make(folder, warnings, mode="online")
    mirror.log(EVAL)
    assert "upload with `wandb sync" in mirror.finish()
    (warning,) = warnings
    assert "No API key configured" in warning
    assert warning.endswith("going on offline.")
    assert steps(wandb_files(folder).rows) == [(10, True)]


def test_online_without_a_server_goes_on_offline(
    folder: Path, warnings: Warnings, wandb_files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # the discard port: nobody listens
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")
    mirror = make(folder, warnings, mode="online")
    mirror.log(EVAL)
    assert "upload with `wandb sync" in mirror.finish()
    (warning,) = warnings
    assert warning.startswith("W&B online did not start (")
    assert steps(wandb_files(folder).rows) == [(10, True)]


def test_a_slow_start_blocks_nobody(
    folder: Path, warnings: Warnings, wandb_files, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, init = threading.Event(), wandb.init

    def slow(**options) -> wandb.Run:
        assert go.wait(30)
        return init(**options)

    monkeypatch.setattr(wandb, "init", slow)
    mirror = make(folder, warnings)
    for row in (TRAIN, EVAL):
        mirror.log(row)
    go.set()  # reached although W&B has not started
    mirror.finish()
    assert warnings == []
    assert steps(wandb_files(folder).rows) == [(5, False), (10, True)]


def test_an_error_in_log_costs_no_row(
    folder: Path, warnings: Warnings, wandb_files, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, fails = wandb.Run.log, [True]

    def flaky(self, *args, **kwargs) -> None:
        if fails.pop() if fails else False:
            raise ConnectionResetError("Connection lost")
        log(self, *args, **kwargs)

    monkeypatch.setattr(wandb.Run, "log", flaky)
    mirror = make(folder, warnings)
    for row in (TRAIN, EVAL):
        mirror.log(row)
    mirror.finish()
    assert warnings == ["W&B failed (Connection lost): going on offline."]
    assert steps(wandb_files(folder).rows) == [(5, False), (10, True)]


def test_errors_without_end_are_given_up_and_counted(
    folder: Path, warnings: Warnings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self, *args, **kwargs) -> None:
        raise ConnectionResetError

    monkeypatch.setattr(wandb.Run, "log", broken)
    mirror = make(folder, warnings)
    for row in (TRAIN, EVAL, LATER):
        mirror.log(row)
    assert "3 rows of the record are missing there." in mirror.finish()
    assert [warning.rsplit(": ")[-1] for warning in warnings] == [
        "going on offline.",
        "giving it up; the record of the run is not affected.",
    ]


def test_a_folder_that_cannot_be_written_is_one_warning(folder: Path, warnings: Warnings) -> None:
    mirror = make(folder / "missing", warnings)
    mirror.log(TRAIN)
    assert mirror.finish() is None
    assert len(warnings) == 1


def test_a_killed_wandb_core_is_replaced(folder: Path, warnings: Warnings, wandb_files) -> None:
    mirror = make(folder, warnings)
    mirror.log(TRAIN)
    wait_for((folder / "wandb_logged").exists)
    (core,) = core_processes()
    os.kill(core, signal.SIGKILL)
    time.sleep(0.2)
    for row in (EVAL, LATER):
        mirror.log(row)
    assert "may be missing there" in mirror.finish()
    assert len(warnings) == 1
    assert steps(wandb_files(folder).rows)[-2:] == [(10, True), (20, True)]


def test_a_hanging_wandb_core_is_replaced_and_blocks_nobody(
    folder: Path, warnings: Warnings, wandb_files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror_module, "HANGS_AFTER", 1.0)
    wide = {"kind": "train", "epoch": 0.5, "sigma": [[5.0] * 16] * 24}
    mirror = make(folder, warnings)
    mirror.log({**wide, "step": 1})
    wait_for((folder / "wandb_logged").exists)
    (core,) = core_processes()
    os.kill(core, signal.SIGSTOP)
    step, slowest = 2, 0.0
    deadline = time.monotonic() + 30
    while core in core_processes():  # until the mirror has got rid of it
        before = time.monotonic()
        assert before < deadline
        mirror.log({**wide, "step": step})
        slowest = max(slowest, time.monotonic() - before)
        step += 1
        time.sleep(0.002)
    assert slowest < 5.0  # it would have been for ever
    mirror.log({**wide, "step": step})
    assert "may be missing there" in mirror.finish()
    assert wandb_files(folder).rows[-1]["step"] == step


def test_a_wandb_core_that_hangs_at_the_end_is_ended(folder: Path, warnings: Warnings) -> None:
    mirror = make(folder, warnings)
    mirror.log(TRAIN)
    wait_for((folder / "wandb_logged").exists)
    (core,) = core_processes()
    os.kill(core, signal.SIGSTOP)
    before = time.monotonic()
    assert "upload with" in mirror.finish(timeout=1.0)
    assert time.monotonic() - before < 5.0
    assert core_processes() == []
    assert len(warnings) == 1

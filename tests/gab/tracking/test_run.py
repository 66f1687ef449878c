import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gab.tracking import mirror
from scripts import wandb_resync
from tests.conftest import ROOT, TINY
from tests.gab.tracking.peer import Peer


@pytest.mark.usefixtures("no_account")
def test_a_run_is_mirrored(
    tiny_run: Callable[..., Path], rows: Callable, wandb_files: Callable, tmp_path: Path
) -> None:
    """What W&B keeps of a run of train.py are the numbers of its record."""
    settings = ["model.gab=true", "train.max_steps=3", "tracking.wandb=offline", "tracking.group=arms"]
    folder = tiny_run(tmp_path, *settings)
    found = wandb_files(folder)
    assert found.exit_codes == [0]
    [run] = found.runs[:1]
    assert (run.project, run.run_group, run.display_name) == ("gab", "arms", "run")
    assert found.config["variant"] == "vit_mini8_gab"
    assert found.config["seed"] == 0
    train = [row for row in found.rows if "train/loss" in row]
    evaluations = [row for row in found.rows if "eval/top1" in row]
    assert [row["train/loss"] for row in train] == [row["loss"] for row in rows(folder, "train")]
    assert [row["epoch"] for row in train] == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2])
    assert [row["eval/top1"] for row in evaluations] == [row["top1"] for row in rows(folder, "eval")]
    assert {"eval/top5", "eval/top1_ema", "train/lr", "train/images_per_second"} <= train[0].keys() | evaluations[
        0
    ].keys()
    for mirrored, row in zip(evaluations, rows(folder, "eval")):
        for field in ("sigma", "amplitude"):
            assert [mirrored[f"{field}/layer_{layer:02d}"] for layer in (1, 2)] == row[field]
    assert {metric.step_metric for metric in found.metrics if metric.step_metric} == {"epoch"}


def test_a_dashboard_that_hangs_costs_no_row_and_the_rest_is_sent_later(
    tiny_run: Callable[..., Path],
    rows: Callable,
    peer: Peer,
    shown: Callable,
    expected: Callable,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mirror, "CLOSING_LIMIT", 2.0)
    peer.behave("hang")
    folder = tiny_run(tmp_path, "train.max_steps=3", "tracking.wandb=online")
    command = f"python scripts/wandb_resync.py {folder}"
    assert f"W&B has received nothing of this start; send the run with `{command}`." in capsys.readouterr().err
    assert [row["step"] for row in rows(folder, "train")] == [1, 2, 3, 4, 5, 6]
    assert rows(folder)[-1]["kind"] == "end"
    peer.behave("well")
    wandb_resync.main([str(folder)])
    (run,) = peer.runs.values()
    assert shown(run.rows) == expected(folder)
    assert run.config["variant"] == {"value": "vit_mini8"}
    assert "figures/top1.png" in run.files


@pytest.mark.slow
def test_a_killed_run_goes_on_in_the_same_dashboard(
    peer: Peer, shown: Callable, expected: Callable, tmp_path: Path
) -> None:
    command = [sys.executable, str(ROOT / "train.py"), *TINY, f"run.dir={tmp_path}", "run.name=run"]
    command += ["train.max_steps=20", "tracking.wandb=online"]
    first = subprocess.Popen(command)
    deadline = time.monotonic() + 240
    while not any(len(run.lines) >= 3 for run in peer.runs.values()):
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    first.kill()
    first.wait()
    subprocess.run(command, check=True, timeout=300)
    (run,) = peer.runs.values()
    assert untimed(shown(run.rows)) == untimed(expected(tmp_path / "run"))
    assert run.state == "finished"


def untimed(rows: list[dict]) -> list[tuple]:
    """What a repeated step measures again alike."""
    return [tuple(row.get(name) for name in ("epoch", "step", "train/loss", "eval/top1")) for row in rows]

from collections.abc import Callable
from pathlib import Path

import pytest


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

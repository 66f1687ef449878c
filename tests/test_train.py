"""Whole runs of train.py on handwritten digits: what the record proves, and that it matters not how it is computed."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import train
from gab.errors import UserError
from gab.training.step import TrainStep
from tests.conftest import ROOT, TINY

Run = Callable[..., Path]
Rows = Callable[..., list[dict]]
GAB = "model.gab=true"


@pytest.fixture(scope="module")
def whole(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run on one process, to which all others are compared."""
    return tiny_run(tmp_path_factory.mktemp("whole"), GAB)


def losses(rows: list[dict]) -> list[float]:
    assert [row["step"] for row in rows] == list(range(1, 21))
    return [row["loss"] for row in rows]


def images_digests(rows: list[dict]) -> list[str]:
    return [row["images_digest"] for row in rows if "images_digest" in row]


def weights(path: Path, kind: str = "model") -> dict[str, torch.Tensor]:
    return torch.load(path / "checkpoints" / "last.pt", weights_only=True)[kind]


# -- the record -------------------------------------------------------------------------------------------------------


def test_every_row_has_its_fields(whole: Path, rows: Rows) -> None:
    assert [row["kind"] for row in rows(whole)] == ["start", *["train"] * 10, "eval", *["train"] * 10, "eval", "end"]
    common = {"kind", "epoch", "step"}
    layers = {"sigma", "amplitude"}
    measured = {"samples", "loss", "lr", "images_per_second", "data_wait", "mfu"}
    names = ("top1", "top5", "mean_per_class", "loss")
    scores = {f"{name}{suffix}" for name in names for suffix in ("", "_ema")}
    for row in rows(whole, "train"):
        assert common | layers | measured <= row.keys()
        assert len(row["sigma"]) == len(row["amplitude"]) == 2
        assert row["epoch"] == row["step"] / 10
        assert row["samples"] == 32 * row["step"]
        assert row["mfu"] is None
        assert 0 <= row["data_wait"] <= 1
        assert row["images_per_second"] > 0
    for row in rows(whole, "eval"):
        assert common | layers | scores | {"samples", "images", "precision"} <= row.keys()
        assert (row["images"], row["precision"]) == (360, "fp32")
    [start], [end] = rows(whole, "start"), rows(whole, "end")
    assert (start["variant"], start["seed"], start["classes"]) == ("vit_mini8_gab", 0, 10)
    assert start["sigma"] == pytest.approx([5 * 4 / 14] * 2)
    assert start["weights"].keys() == weights(whole).keys()
    assert common | scores | {"process_hours"} <= end.keys()
    assert end["top1"] == rows(whole, "eval")[-1]["top1"]


def test_what_a_run_leaves(whole: Path, rows: Rows) -> None:
    files = {str(path.relative_to(whole)) for path in whole.rglob("*")}
    assert {"config.yaml", "record.jsonl", "checkpoints/last.pt", "checkpoints/best.pt", "predictions.npz"} <= files
    assert {"figures/top1.png", "figures/bias_over_time.png", "provenance.json"} <= files
    assert yaml.safe_load((whole / "config.yaml").read_text())["model"]["embed_dim"] == 48
    [origin] = json.loads((whole / "provenance.json").read_text())
    assert origin["commit"] == rows(whole, "start")[0]["commit"]


def test_predictions_are_those_of_the_last_epoch(whole: Path, rows: Rows) -> None:
    [end] = rows(whole, "end")
    with np.load(whole / "predictions.npz") as stored:
        assert len(set(stored["image"].tolist())) == len(stored["image"]) == 360
        hit = stored["top5"] == stored["label"][:, None]
        assert 100 * hit[:, 0].mean() == pytest.approx(end["top1"])
        assert 100 * hit.any(1).mean() == pytest.approx(end["top5"])
        assert stored["log_loss"].mean() == pytest.approx(end["loss"], rel=1e-5)


def test_checkpoints_are_plain(whole: Path, rows: Rows) -> None:
    last, best = (torch.load(whole / "checkpoints" / f"{name}.pt", weights_only=True) for name in ("last", "best"))
    assert last["step"] == 20
    top1 = [row["top1"] for row in rows(whole, "eval")]
    assert best["best_score"] == last["best_score"] == max(top1)
    assert best["step"] == 10 * (1 + top1.index(max(top1)))
    assert last["config"]["model"]["embed_dim"] == 48
    assert last["classes"] == [str(digit) for digit in range(10)]


def test_the_gaussian_learns(whole: Path, rows: Rows) -> None:
    [start] = rows(whole, "start")
    for field in ("sigma", "amplitude"):
        moved = [abs(a - b) for a, b in zip(start[field], rows(whole, "train")[-1][field])]
        assert min(moved) > 1e-4


# -- the same, computed otherwise -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["run.micro_batch=8", "run.processes=2"])
def test_processes_and_micro_batches_change_nothing(how: str, whole: Path, tiny_run: Run, rows: Rows, tmp_path) -> None:
    """Drop-path, dropout in the bias, mixup, cutmix and erasing are on; float32, 20 steps."""
    other = tiny_run(tmp_path, GAB, how)
    np.testing.assert_allclose(losses(rows(other, "train")), losses(rows(whole, "train")), rtol=1e-5)
    assert images_digests(rows(other)) == images_digests(rows(whole))
    assert len(images_digests(rows(whole))) == 2
    for found, expected in zip(rows(other, "eval"), rows(whole, "eval")):
        assert found["images"] == expected["images"]
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)


@pytest.mark.slow
def test_torchrun_gives_the_same(whole: Path, rows: Rows, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "train.py"]
    subprocess.run([*command, *TINY, GAB, f"run.dir={tmp_path}", "run.name=run"], cwd=ROOT, check=True, timeout=300)
    np.testing.assert_allclose(losses(rows(tmp_path / "run", "train")), losses(rows(whole, "train")), rtol=1e-5)
    assert images_digests(rows(tmp_path / "run")) == images_digests(rows(whole))


@pytest.mark.slow
def test_compiled_is_eager_to_rounding(whole: Path, tiny_run: Run, rows: Rows, tmp_path: Path) -> None:
    other = tiny_run(tmp_path, GAB, "run.compile=true")
    np.testing.assert_allclose(losses(rows(other, "train")), losses(rows(whole, "train")), rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_trains_compiled_in_bf16(whole: Path, tiny_run: Run, rows: Rows, tmp_path: Path) -> None:
    """Close to float32 on the CPU, on the same images; data sets in other memory are another matter."""
    other = tiny_run(tmp_path, GAB, "run.device=cuda", "run.processes=1")
    np.testing.assert_allclose(losses(rows(other, "train")), losses(rows(whole, "train")), rtol=0.05)
    assert images_digests(rows(other)) == images_digests(rows(whole))


@pytest.mark.ffcv
def test_loaders_change_nothing(whole: Path, tiny_run: Run, rows: Rows, tmp_path: Path) -> None:
    pytest.importorskip("ffcv")
    other = tiny_run(tmp_path, GAB, "data.loader=ffcv", f"data.root={tmp_path}")
    assert losses(rows(other, "train")) == losses(rows(whole, "train"))  # digits are stored raw
    assert images_digests(rows(other)) == images_digests(rows(whole))
    assert rows(other, "eval")[-1]["loss"] == rows(whole, "eval")[-1]["loss"]


def test_two_variants_start_alike_and_see_the_same_images(whole: Path, tiny_run: Run, rows: Rows, tmp_path) -> None:
    plain = tiny_run(tmp_path, "model.gab=false")
    [ours], [theirs] = rows(whole, "start"), rows(plain, "start")
    shared = ours["weights"].keys() & theirs["weights"].keys()
    assert {name: ours["weights"][name] for name in shared} == {name: theirs["weights"][name] for name in shared}
    assert shared == theirs["weights"].keys()
    assert {name.rpartition(".")[2] for name in ours["weights"].keys() - shared} == {"sigma", "amplitude"}
    assert images_digests(rows(plain)) == images_digests(rows(whole))
    assert "sigma" not in rows(plain, "train")[0]
    other = tiny_run(tmp_path / "seed", "seed=1", "train.epochs=1", "train.max_steps=2")
    assert rows(other, "start")[0]["weights"]["head.weight"] != ours["weights"]["head.weight"]
    assert images_digests(rows(other))[0] != images_digests(rows(whole))[0]


# -- starting again, and stopping for good ----------------------------------------------------------------------------


def test_a_finished_run_is_left_alone(whole: Path, tiny_run: Run, rows: Rows, capsys) -> None:
    before = (whole / "record.jsonl").read_bytes()
    capsys.readouterr()
    tiny_run(whole.parent, GAB)
    said = capsys.readouterr().out
    assert f"{whole} is finished" in said
    assert f"top-1 {rows(whole, 'end')[0]['top1']:.2f} %" in said
    assert (whole / "record.jsonl").read_bytes() == before


def test_another_config_under_the_same_name_stops(whole: Path, tiny_run: Run) -> None:
    before = (whole / "config.yaml").read_bytes()
    with pytest.raises(UserError, match=r"optim\.lr: 0\.002 -> 0\.001.*another run\.name"):
        tiny_run(whole.parent, GAB, "optim.lr=1e-3")
    assert (whole / "config.yaml").read_bytes() == before


def break_loss(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Let the loss of these steps (from 1) be NaN, and with it the gradient."""
    loss = TrainStep._loss

    def broken(self, *args, **keywords):
        return loss(self, *args, **keywords) * (math.nan if self.state.step + 1 in steps else 1.0)

    monkeypatch.setattr(TrainStep, "_loss", broken)


def test_a_loss_that_is_not_finite_stops_the_run(tiny_run: Run, rows: Rows, tmp_path: Path, monkeypatch) -> None:
    """The step is named though losses are read at rows only, and the last good checkpoint is that of before."""
    break_loss(monkeypatch, 7)
    with pytest.raises(UserError, match=r"the loss of step 7 is not finite \(the last good .* step 6.*lower optim\.lr"):
        tiny_run(tmp_path, GAB, "run.log_every=5", "checkpoint.every_steps=2")
    assert [row["step"] for row in rows(tmp_path / "run", "train")] == [5]
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)
    assert last["step"] == 6
    assert all(tensor.isfinite().all() for tensor in last["model"].values())


def test_some_steps_may_be_left_out(tiny_run: Run, rows: Rows, tmp_path: Path, monkeypatch) -> None:
    break_loss(monkeypatch, 3, 4)
    short = ("train.max_steps=6", "train.epochs=1", "run.log_every=2")
    run = tiny_run(tmp_path / "two", GAB, *short, "train.skip_non_finite=2")
    assert [row["skipped"] for row in rows(run, "train")] == [0, 2, 2]
    assert all(math.isfinite(row["loss"]) for row in rows(run, "train"))
    last = torch.load(run / "checkpoints" / "last.pt", weights_only=True)
    assert {float(state["step"]) for state in last["optimizer"]["state"].values()} == {4.0}
    with pytest.raises(UserError, match=r"the gradients of 2 steps .* train\.skip_non_finite=1"):
        tiny_run(tmp_path / "one", GAB, *short, "train.skip_non_finite=1")


def test_broken_weights_are_not_published(tiny_run: Run, tmp_path: Path, monkeypatch) -> None:
    """The last loss of an epoch is computed before its update, so it cannot tell."""
    train_epoch = train.Trainer.train_epoch

    def break_weights(self, epoch: int) -> None:
        train_epoch(self, epoch)
        if epoch == 1:
            next(self.state.model.parameters()).data.fill_(math.nan)

    monkeypatch.setattr(train.Trainer, "train_epoch", break_weights)
    with pytest.raises(UserError, match=r"weights after step 8 are not finite \(the last good .* step 4, .*last\.pt"):
        tiny_run(tmp_path, GAB, "train.max_steps=4")
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)
    assert last["step"] == 4
    assert all(tensor.isfinite().all() for tensor in last["model"].values())


# -- before and around a run ------------------------------------------------------------------------------------------


def test_dry(tiny_run: Run, tmp_path: Path, capsys) -> None:
    tiny_run(tmp_path, GAB, "run.dry=true", "train.max_steps=null")
    said = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    said = {key.strip(): value.strip() for key, value in said.items()}
    assert said["variant"] == "vit_mini8_gab"
    assert said["steps"] == "44 an epoch, 88 in all (train.epochs=2)"
    assert said["group gaussian"].startswith("4 tensors, 4 parameters, weight decay 0")
    assert said["learning rate"].startswith("0.002 (not scaled with the batch)")
    assert said["disk"].endswith(" GB at most for 4 of them: last, best, 1 older, 1 being written")
    assert said["warm-up"] == "cut to half of the run (optim.warmup_epochs=3, train.epochs=2)"
    assert {"parameters", "MACs per image", "group decayed", "group exempt", "disk", "time"} <= said.keys()
    assert not list(tmp_path.iterdir())
    tiny_run(tmp_path, "run.dry=true", "train.epochs=6")
    assert "\nwarm-up " not in capsys.readouterr().out
    tiny_run(tmp_path, "run.dry=true", "train.epochs=1", "optim.lr_per=epoch")
    assert "the rate never leaves it: 1e-06 throughout" in capsys.readouterr().out


@pytest.mark.parametrize("group", ["fast", "overfit", pytest.param("profile", marks=pytest.mark.slow)])
def test_debug_groups(group: str, config: Callable, rows: Rows, tmp_path: Path) -> None:
    small = ["experiment=digits", "data.loader=torch", "run.workers=1", "run.name=run", f"run.dir={tmp_path}"]
    train.run(config(*small, GAB, f"debug={group}"))
    folder = tmp_path / "run"
    trained = rows(folder, "train")
    assert rows(folder, "end")
    assert trained[-1]["step"] <= 100
    if group == "overfit":
        assert trained[-1]["loss"] < 0.02 * trained[0]["loss"]
    assert (folder / "trace.json").is_file() == (group == "profile")

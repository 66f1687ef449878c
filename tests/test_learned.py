"""Bias maps, position similarity, attention distance and roll-out in training and by eval.py, on digits."""

import csv
import json
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np
import pytest
from omegaconf import DictConfig

import eval as evaluation
from gab.errors import UserError
from gab.tracking.media import images

NAMES = ("bias_maps", "position_similarity", "attention_distance", "rollout")
INSIDE = [
    f"evaluators=[top1,{','.join(NAMES)}]",
    *("evaluators.rollout.images=3", "evaluators.attention_distance.images=10"),
    *("model.gab=true", "model.join=lape", "model.position=learnable", "train.max_steps=2", "train.epochs=2"),
    *("train.ema_decay=null", "train.eval_images=8"),
]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def trained(tiny_run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of two steps; bias maps after each, the others at the end. What was said is in `said`, beside it."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch, (folder / "said").open("w") as said, redirect_stderr(said):
        patch.setenv("GAB_FIGURES", "png")  # half the time
        return tiny_run(folder, *INSIDE, "evaluators.bias_maps.every_epochs=1")


def test_in_training(trained: Path, rows: Callable[..., list[dict]]) -> None:
    first, last = rows(trained, "evaluate")
    assert set(first["figures"]) < set(last["figures"])
    assert all(name.startswith("bias_") for name in first["figures"])
    assert {"rollout", "attention_distance", "position_similarity", "bias_maps"} <= set(last["figures"])
    assert all((trained / path).stat().st_size > 5000 for path in last["figures"].values())
    assert set(images(last, trained)) == {f"figures/{name}" for name in last["figures"]}
    said = (trained.parent / "said").read_text()
    assert "\nepoch 1/2: running bias_maps\n" in said
    assert f"\n{len(last['figures'])} figures in {trained / 'figures' / 'epoch_0002'}\n" in said
    assert last["attention_distance_images"] == 10
    assert last["rollout_images"] == 3
    assert 0 < last["attention_distance_pixels"] < 32 * 2**0.5
    assert -1 <= last["position_similarity_last_distance_correlation"] <= 1
    maps = table(trained / "eval" / "epoch_0002" / "bias_maps" / "bias_maps.csv")
    assert {row["part"] for row in maps} == {"relative", "gaussian", "sum"}
    fits = table(trained / "eval" / "epoch_0002" / "bias_maps" / "bias_fits.csv")
    assert {row["note"] for row in fits} == {"16 points are too few for a fit"}


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_by_eval(
    processes: int,
    config: Callable[..., DictConfig],
    trained: Path,
    rows: Callable[..., list[dict]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The numbers of the record again, by one process or two, in batches of another size."""
    monkeypatch.setenv("GAB_FIGURES", "pdf")
    evaluation.run(
        config(
            f"checkpoint={trained / 'checkpoints' / 'last.pt'}", f"evaluators=[{','.join(NAMES[2:])}]",
            "evaluators.rollout.images=3", "evaluators.attention_distance.images=10",
            "evaluators.attention_distance.batch_size=3", "evaluators.rollout.classes=[0,7]", "run.eval_batch=4",
            f"run.processes={processes}", "run.workers=1", "run.device=cpu", "eval.weights=raw", f"eval.out={tmp_path}",
            name="eval",
        )
    )  # fmt: skip
    found = json.loads((tmp_path / "scores.json").read_text())["scores"]["raw"]
    [*_, last] = rows(trained, "evaluate")
    for name in ("attention_distance_pixels", "rollout_area_50"):
        assert found[name] == pytest.approx(last[name], rel=1e-4)
    shown = table(tmp_path / "rollout" / "rollout.csv")
    assert len({row["image"] for row in shown}) == 3
    ordinary = [float(row["percent"]) for row in shown if row["map"] == "ordinary"]
    assert np.sum(ordinary) == pytest.approx(300, abs=0.01)
    assert {"0", "7"} <= {row["class"] for row in shown if row["map"] == "dense"}
    distances = table(tmp_path / "attention_distance" / "attention_distance.csv")
    assert {row["images"] for row in distances} == {"10"}
    assert (tmp_path / "figures" / "rollout.pdf").is_file()


REFUSED = {
    "evaluators.bias_maps.query=[4,0]": r"target=\(4, 0\) lies outside of the grid of 4 x 4 patches",
    "evaluators.position_similarity.target=5": r"target=5: give 1 to 4 patches",
    "evaluators.attention_distance.images=0": r"attention_distance\.images=0: give a number of at least 1",
    "evaluators.rollout.row=class": r"row=class: this network has 0 tokens beside its patches; choose row=mean",
    "evaluators.rollout.row=last": r"rollout\.row=last is unknown",
    "evaluators.rollout.classes=[10]": r"class 10 is not among the 10 that there are",
    "evaluators.rollout.discard_ratio=1": r"discard_ratio=1: give a share",
    "evaluators.rollout.start_layer=3": r"start_layer=3 lies behind the last of 2 layers",
    "model.rel_pos=none model.gab=false": r"evaluators=bias_maps: .* adds no bias to its attention",
    "model.position=none model.join=add": r"has no absolute position embedding",
}


@pytest.mark.parametrize("overrides", REFUSED)
def test_refused_before_training(overrides: str, tiny_run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=REFUSED[overrides]):
        tiny_run(tmp_path, *INSIDE, *overrides.split())
    assert not list(tmp_path.iterdir())

"""Receptive fields in training and by eval.py, on digits; what is refused before anything takes long."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig

import eval as evaluation
from conf.networks import data_of, restore
from data import open_eval
from gab.augment import normalize
from gab.errors import UserError
from gab.evaluators.erf import effective_receptive_field
from gab.tracking.media import images
from gab.training import checkpoint

ERF = ["evaluators=[top1,erf]", "evaluators.erf.images=8", "train.max_steps=6", "train.ema_decay=0.5"]
FIGURES = ["epoch_0001/erf.png", "epoch_0001/erf_ema.png", "epoch_0002/erf.png", "epoch_0002/erf_ema.png"]


@pytest.fixture(scope="module")
def trained(tiny_run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of six steps, with a look after each."""
    return tiny_run(tmp_path_factory.mktemp("trained"), *ERF, "evaluators.erf.every_epochs=1")


def test_in_training(trained: Path, rows: Callable[..., list[dict]]) -> None:
    first, last = rows(trained, "evaluate")
    for row in (first, last):
        assert row["erf_images"] == 8
        assert 0 < row["erf_area_20"] < row["erf_area_50"] < row["erf_area_99"] <= 100
        assert row["erf_r_squared"] <= 1
        assert row["erf_relative_error_ema"] > 0
    assert last["figures"] == {"erf": f"figures/{FIGURES[2]}", "erf_ema": f"figures/{FIGURES[3]}"}
    assert [
        str(path.relative_to(trained / "figures")) for path in sorted((trained / "figures").glob("*/*.png"))
    ] == FIGURES
    assert first["erf_own_patch"] != last["erf_own_patch"]
    with (trained / "eval" / "scores.csv").open(newline="") as file:
        assert float(next(csv.DictReader(file))["erf_area_50"]) == pytest.approx(last["erf_area_50"], abs=1e-5)
    assert set(images(last, trained)) == {"figures/erf", "figures/erf_ema"}
    assert images({**last, "figures": {"erf": "gone.png"}}, trained) == {}


@pytest.mark.parametrize("processes", [1, 2])
def test_by_eval(processes: int, config: Callable[..., DictConfig], trained: Path, rows, tmp_path: Path) -> None:
    """The numbers of the record again, by one process or two, in batches of any size; the maps are the function's."""
    evaluation.run(
        config(
            f"checkpoint={trained / 'checkpoints' / 'last.pt'}", "evaluators=[erf]", "evaluators.erf.images=8",
            "evaluators.erf.batch_size=3", "run.eval_batch=3", f"run.processes={processes}", "run.workers=1",
            "run.device=cpu", f"eval.out={tmp_path}", name="eval",
        )
    )  # fmt: skip
    found = json.loads((tmp_path / "scores.json").read_text())
    [_, last] = rows(trained, "evaluate")
    for name in ("area_50", "own_patch", "relative_error", "sigma_x"):
        assert found["scores"]["raw"][f"erf_{name}"] == pytest.approx(last[f"erf_{name}"], rel=1e-3)
    assert (tmp_path / "figures" / "erf.pdf").stat().st_size > 5000
    with (tmp_path / "erf" / "erf.csv").open(newline="") as file:
        [row] = csv.DictReader(file)
    assert (row["row"], row["column"], row["images"], row["measured"]) == (
        "1",
        "1",
        "8",
        "channel mean, not normalised",
    )
    with (tmp_path / "erf" / "radial_mass.csv").open(newline="") as file:
        assert float(list(csv.DictReader(file))[-1]["mass_1_1"]) == pytest.approx(100)
    if processes == 1:
        stored = checkpoint.load(trained / "checkpoints" / "last.pt")
        data = data_of(stored)
        model = restore(stored, "raw", data.image_size)
        [batch] = open_eval(data, batch_size=8, limit=8, workers=1)
        shown = normalize(batch.images, torch.tensor(data.mean), torch.tensor(data.std))
        with np.load(tmp_path / "erf" / "erf.npz") as saved:
            np.testing.assert_allclose(
                saved["maps"], effective_receptive_field(model, shown).maps, rtol=1e-3, atol=1e-9
            )


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_what_cannot_be_measured_yet_does_not_end_a_run(
    processes: int, config: Callable[..., DictConfig], tiny_run, rows, tmp_path: Path, monkeypatch, capfd
) -> None:
    """The averaged weights of the last LayerNorm are still ones; eval.py, which is asked for nothing else, refuses."""
    monkeypatch.setenv("GAB_FIGURES", "png")
    chosen = ("model=deit_t4", "evaluators=[top1,erf,attention_distance]", f"run.processes={processes}")
    chosen += ("evaluators.erf.every_epochs=1", "evaluators.attention_distance.every_epochs=1")
    folder = tiny_run(tmp_path, *ERF[1:], *chosen, "train.ema_decay=0.99996", "train.max_steps=2")
    said = capfd.readouterr().err
    for epoch, row in enumerate(rows(folder, "evaluate"), start=1):
        sentence = f"epoch {epoch}/2: erf finds no numbers for the ema weights: the network ends in a LayerNorm whose "
        assert said.count(sentence) == 1
        assert "erf_area_50" in row
        assert "erf_area_50_ema" not in row
        assert row["attention_distance_pixels_ema"] > 0
    raw, ema = csv.DictReader((folder / "eval" / "scores.csv").open(newline=""))
    assert float(raw["erf_area_50"]) > 0
    assert ema["erf_area_50"] == ""
    assert rows(folder)[-1]["kind"] == "end"
    if processes == 1:
        last = f"checkpoint={folder / 'checkpoints' / 'last.pt'}"
        with pytest.raises(UserError, match="ends in a LayerNorm"):
            evaluation.run(
                config(last, "evaluators=[erf]", "eval.weights=ema", "run.workers=1", "run.device=cpu", name="eval")
            )


REFUSED = {
    "evaluators.erf.images=7": r"evaluators\.erf\.images=7 are too few to fit a Gaussian",
    "evaluators.erf.readout=median": r"erf\.readout=median is unknown: choose one of mean, random, pre_norm",
    "evaluators.erf.every_epochs=0": r"every_epochs=0: give a number of at least 1",
    "evaluators.erf.target=[4,0]": r"target=\(4, 0\) lies outside of the grid of 4 x 4 patches",
    "evaluators.erf.layer=2": r"layer=2 is no module of the network",
}


@pytest.mark.parametrize("override", REFUSED)
def test_refused_before_training(override: str, tiny_run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=REFUSED[override]):
        tiny_run(tmp_path, *ERF, override)
    assert not list(tmp_path.iterdir())

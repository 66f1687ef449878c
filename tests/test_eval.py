"""eval.py gives the numbers of the record, for raw and averaged weights and for networks by name."""

import csv
import errno
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from omegaconf import DictConfig

import eval as evaluation
from gab.errors import UserError

Run = Callable[..., Path]


@pytest.fixture(scope="module")
def trained(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("trained"), "model.gab=true", "train.max_steps=4", "train.ema_decay=0.5")


def evaluate(config: Callable[..., DictConfig], *overrides: str) -> None:
    evaluation.run(config("run.workers=1", "run.device=cpu", *overrides, name="eval"))


def scores(folder: Path) -> dict:
    return json.loads((folder / "scores.json").read_text())


def test_numbers_of_the_record(config, trained: Path, rows, tmp_path: Path, capsys) -> None:
    evaluate(config, f"checkpoint={trained / 'checkpoints' / 'last.pt'}", "run.eval_batch=100")
    folder = trained / "eval" / "last-digits-val-32"
    stored, [end] = scores(folder), rows(trained, "end")
    assert (stored["model"], stored["precision"], stored["split"]) == ("vit_mini8_gab", "fp32", "val")
    assert stored["scores"].keys() == {"raw", "ema"}
    for weights, suffix in (("raw", ""), ("ema", "_ema")):
        found = stored["scores"][weights]
        assert found["images"] == 360
        assert found["top1"] == pytest.approx(end[f"top1{suffix}"])
        assert found["top5"] == pytest.approx(end[f"top5{suffix}"])
        assert found["log_loss"] == pytest.approx(end[f"loss{suffix}"], rel=1e-5)
        with np.load(folder / f"predictions{suffix}.npz") as predictions:
            hits = predictions["top5"][:, 0] == predictions["label"]
            assert 100 * hits.mean() == pytest.approx(found["top1"])
        classes = list(csv.DictReader((folder / f"per_class{suffix}.csv").open()))
        assert [row["name"] for row in classes] == [str(digit) for digit in range(10)]
        assert sum(int(row["images"]) for row in classes) == 360
    assert stored["scores"]["raw"]["log_loss"] != stored["scores"]["ema"]["log_loss"]
    assert f"{stored['scores']['raw']['top1']:.3f}" in capsys.readouterr().out
    with np.load(folder / "predictions.npz") as ours, np.load(trained / "predictions.npz") as record:
        assert ours["image"].tolist() == record["image"].tolist()
        np.testing.assert_allclose(ours["log_loss"], record["log_loss"], rtol=1e-4)


def test_another_size_weights_and_place(config, trained: Path, tmp_path: Path) -> None:
    changes = ["data=digits", "data.loader=torch", "data.image_size=48", "eval.weights=ema", "eval.precision=bf16"]
    evaluate(config, f"checkpoint={trained / 'checkpoints' / 'best.pt'}", *changes, f"eval.out={tmp_path / 'out'}")
    stored = scores(tmp_path / "out")
    assert (stored["precision"], stored["data"]["image_size"]) == ("bf16", 48)
    assert stored["scores"].keys() == {"ema"}
    assert stored["scores"]["ema"]["images"] == 360


def test_training_split(config, trained: Path, tmp_path: Path) -> None:
    where = f"eval.out={tmp_path / 'out'}"
    evaluate(config, f"checkpoint={trained / 'checkpoints' / 'last.pt'}", "eval.split=train", "eval.weights=raw", where)
    assert scores(tmp_path / "out")["scores"]["raw"]["images"] == 1437


def test_timm_model_by_name(config, tmp_path: Path) -> None:
    """With weights from nowhere: what is published for it cannot be fetched here."""
    model = ["model=timm", "model.name=vit_tiny_patch16_224", "model.pretrained=false", "data=digits"]
    evaluate(config, *model, "data.loader=torch", f"eval.out={tmp_path / 'out'}")
    stored = scores(tmp_path / "out")
    assert stored["model"] == "vit_tiny_patch16_224"
    assert stored["scores"]["raw"]["images"] == 360


REFUSED = {
    "evaluators=[top1,rollout] evaluators.rollout.classes=[10]": "evaluators=rollout: class 10 .*or leave rollout out",
    "evaluators=[position_similarity]": "evaluators=position_similarity: .* no absolute position embedding",
}


@pytest.mark.parametrize("overrides", REFUSED)
def test_what_the_network_has_not_is_refused_before_anything_is_looked_at(
    overrides: str, config, trained: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=REFUSED[overrides]):
        evaluate(
            config,
            f"checkpoint={trained / 'checkpoints' / 'last.pt'}",
            *overrides.split(),
            f"eval.out={tmp_path / 'out'}",
        )
    assert not list(tmp_path.iterdir())


def entered(run: Path) -> list[dict[str, str]]:
    with (run / "eval" / "scores.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_own_images_under_their_name_are_those_of_the_run(config, tiny_run: Run, tmp_path: Path, capsys) -> None:
    """Else most of the pooled images would be such as it was trained on, in the row of the others."""
    short = ["model.depth=1", "train.max_steps=2", "train.ema_decay=null", "data.split=pooled"]
    run = tiny_run(tmp_path, *short)
    checkpoint = f"checkpoint={run / 'checkpoints' / 'last.pt'}"
    before, tested = entered(run)
    evaluate(config, checkpoint, "data=digits", "data.loader=torch")
    assert "warning" not in capsys.readouterr().out
    evaluate(config, checkpoint, "data.split=official")
    assert "warning: trained with data.split=pooled" in capsys.readouterr().out
    own, *others = entered(run)
    assert {**own, "date": ""} == {**before, "date": ""}
    assert others[0] == tested
    assert [(row["drawn"], row["images"]) for row in others] == [("pooled-0", "269"), ("", "360")]
    folders = sorted(path.name for path in (run / "eval").iterdir() if path.is_dir())
    assert folders == ["last-digits-pooled-0-val-32", "last-digits-val-32"]


@pytest.mark.parametrize("out", ["/proc/none", "a_file"])
def test_a_folder_that_cannot_be_written_is_refused_before_the_first_batch(
    out: str, config, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a_file").write_text("")
    monkeypatch.setattr(evaluation, "look", pytest.fail)
    with pytest.raises(UserError, match=r"the folder .* cannot be written \(.*\): .*set eval.out to another place"):
        evaluate(config, f"checkpoint={trained / 'checkpoints' / 'last.pt'}", f"eval.out={tmp_path / out}")


def test_a_disk_that_gets_full_meanwhile(config, trained: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(evaluation.table, "enter", full)
    with pytest.raises(UserError, match=r"\(No space left on device\): make room and evaluate again, or set eval.out"):
        evaluate(config, f"checkpoint={trained / 'checkpoints' / 'last.pt'}", f"eval.out={tmp_path / 'out'}")
    said = capsys.readouterr().out
    assert "raw  top1" in said
    assert "ema  top1" in said  # nothing is lost on the screen

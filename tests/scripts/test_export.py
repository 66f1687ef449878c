"""scripts/export.py: what it writes loads elsewhere, gives the same outputs, and says what it is."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import yaml

from conf.schema import model_from, plain
from gab.errors import UserError
from gab.models import build
from gab.training import checkpoint
from gab.training.state import WEIGHTS
from scripts import export

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def run(tiny_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = ("model.gab=true", "train.max_steps=2", "train.ema_decay=0.5")
    return tiny_run(tmp_path_factory.mktemp("export"), *settings)


def load(folder: Path) -> torch.nn.Module:
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


def trained(run: Path, weights: str = "raw") -> torch.nn.Module:
    """The network as train.py made it, with the weights of the checkpoint."""
    stored = checkpoint.load(run / "checkpoints" / "last.pt")
    model = build(model_from(stored["config"]["model"]), image_size=32, num_classes=10, seed=1)
    model.load_state_dict(stored[WEIGHTS[weights]])
    return model.eval()


def metadata(folder: Path) -> dict:
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def test_a_folder_for_timm(run: Path, rows, capsys: pytest.CaptureFixture) -> None:
    export.main([str(run)])
    folder = run / "export"
    said = f'{folder}: import gab, timm; timm.create_model("local-dir:{folder}", pretrained=True)\n'
    assert capsys.readouterr().out == said
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    model = load(folder)
    assert torch.equal(model(IMAGES), trained(run)(IMAGES))
    assert model.get_classifier() is model.head
    transform = timm.data.resolve_model_data_config(model)
    assert transform == {
        "input_size": (3, 32, 32),
        "interpolation": "bicubic",
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "crop_pct": 1.0,
        "crop_mode": "center",
    }
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == "gab_vit"
    assert config["label_names"] == [str(digit) for digit in range(10)]
    assert not {"license", "tag", "hf_hub_id"} & config["pretrained_cfg"].keys()
    for size in (3, 20):
        assert timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=size)(IMAGES).shape == (2, size)


def test_files_follow_the_umask(run: Path, tmp_path: Path) -> None:
    for mask, mode in ((0o022, 0o644), (0o007, 0o660)):
        usual = os.umask(mask)
        try:
            export.main([str(run), "--out", str(tmp_path / f"{mask:o}")])
        finally:
            os.umask(usual)
        assert {path.stat().st_mode & 0o777 for path in (tmp_path / f"{mask:o}").iterdir()} == {mode}


def test_the_card_says_what_the_record_says(run: Path, rows, tmp_path: Path) -> None:
    last = rows(run, "eval")[-1]
    for weights, key in (("raw", "top1"), ("ema", "top1_ema")):
        export.main([str(run), "--weights", weights, "--out", str(tmp_path / weights)])
        [result] = metadata(tmp_path / weights)["model-index"][0]["results"]
        assert result["metrics"][0]["value"] == pytest.approx(last[key], abs=1e-3)
        text = (tmp_path / weights / "README.md").read_text()
        assert f"Top-1 is {last[key]:.3f} % on 360 validation images of digits" in text
        assert "epoch 2, step 4." in text
        assert "\nseed: 0\n" in text
        assert str(run.parent) not in text
    assert not torch.equal(load(tmp_path / "raw")(IMAGES), load(tmp_path / "ema")(IMAGES))
    assert torch.equal(load(tmp_path / "ema")(IMAGES), trained(run, "ema")(IMAGES))


def test_another_checkpoint(run: Path, tmp_path: Path) -> None:
    """The one that was chosen says so; one of the middle of an epoch was not evaluated."""
    export.main([str(run / "checkpoints" / "best.pt"), "--out", str(tmp_path / "best")])
    assert "This step was chosen on these images." in (tmp_path / "best" / "README.md").read_text()
    stored = checkpoint.load(run / "checkpoints" / "last.pt")
    card = export.describe(trained(run), {**stored, "step": 3}, "raw", run / "checkpoints" / "last.pt")
    assert "step 3, which were not evaluated" in card
    assert "model-index" not in card


def test_folded_is_timms_own(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    export.main([str(run), "--fold", "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert said == f'{tmp_path}: import timm; timm.create_model("local-dir:{tmp_path}", pretrained=True)\n'
    assert "import gab" not in (tmp_path / "README.md").read_text()
    model = load(tmp_path)
    assert type(model) is timm.models.VisionTransformerRelPos
    assert torch.allclose(model(IMAGES), trained(run)(IMAGES), atol=1e-6)


def test_onnx(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    runtime = pytest.importorskip("onnxruntime")
    export.main([str(run), "--onnx", "--out", str(tmp_path)])
    assert "images (batch, 3, 32, 32) to logits; within " in (said := capsys.readouterr().out)
    assert said.endswith(" of PyTorch's\n")
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    [logits] = session.run(["logits"], {"images": IMAGES[:1].numpy()})
    assert torch.allclose(torch.from_numpy(logits), trained(run)(IMAGES[:1]), atol=1e-5)


FOREIGN = ["model=timm", "model.name=vit_tiny_patch16_224", "model.drop_path_rate=0", "+model.kwargs.depth=1"]


def test_a_network_of_timm(config, tmp_path: Path) -> None:
    """From a checkpoint made by hand: what counts is what it holds."""
    container = plain(config("data=digits", *FOREIGN))
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=10, depth=1)
    content = {"model": model.state_dict(), "ema": None, "step": 7, "config": container, "classes": list("0123456789")}
    (tmp_path / "checkpoints").mkdir()
    path = tmp_path / "checkpoints" / "last.pt"
    checkpoint.write(path, content)
    export.main([str(tmp_path), "--fold"])
    assert not (tmp_path / "export").exists()  # it is for the network as it was trained
    assert torch.equal(load(tmp_path / "export-folded")(IMAGES), model.eval()(IMAGES))
    assert "step 7, which were not evaluated" in (tmp_path / "export-folded" / "README.md").read_text()
    with pytest.raises(UserError, match="no averaged weights: leave --weights out"):
        export.export(tmp_path, "ema", None, False, False)


def test_what_cannot_be_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        export.main([str(tmp_path)])
    assert ended.value.code == 2
    assert "there is no checkpoint" in capsys.readouterr().err

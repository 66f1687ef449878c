"""From checkpoints and timm's registry to networks with their weights, and to the images that they are used to."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from conf.errors import refuse_unknown
from conf.networks import compare_splits, data_of, published, restore, transform_of, without_weights
from conf.schema import data_for, plain, typed
from data.config import CropConfig, DataConfig
from gab.config import ModelConfig, TimmConfig, ViTConfig
from gab.errors import UserError
from gab.models import build

IMAGES = DataConfig(name="digits", image_size=32)
CLASSES = [str(digit) for digit in range(10)]
TRANSFORM = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.5, 0.5), "crop_pct": 0.8, "interpolation": "bilinear"}
SETTINGS = {**TRANSFORM, "num_classes": 10, "classifier": "head", "file": "line.pth"}
default_cfgs: dict[str, Any] = generate_default_cfgs({"published_line": SETTINGS})


class Line(nn.Module):
    """One linear map of the mean colour."""

    def __init__(self, num_classes: int = 10, in_chans: int = 3):
        super().__init__()
        self.num_classes = num_classes
        self.head = nn.Linear(in_chans, num_classes)


@register_model
def published_line(pretrained: bool = False, **kwargs: Any) -> Line:
    """The network under its name."""
    return build_model_with_cfg(Line, "published_line", pretrained, **kwargs)


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """Those that the network is published with, in a file of the working directory."""
    line = Line()
    torch.save(line.state_dict(), tmp_path / "line.pth")
    monkeypatch.chdir(tmp_path)
    return line.head.weight


LINE = TimmConfig(base="published_line", name="published_line")


def test_published_weights_and_what_they_are_used_to(weights: torch.Tensor, capsys) -> None:
    network = published(LINE, IMAGES, ["top1"], CLASSES)
    assert torch.equal(network.get_parameter("head.weight"), weights)
    note = "note: timm evaluates it with data.std=[0.25, 0.5, 0.5] data.eval_interpolation=bilinear data.eval_crop=0.8"
    assert capsys.readouterr().out == f"{note}\n"
    usual = replace(IMAGES, std=[0.25, 0.5, 0.5], eval_interpolation="bilinear", eval_crop=0.8)
    published(LINE, usual, ["top1"], CLASSES)
    assert capsys.readouterr().out == ""
    assert LINE.pretrained is None


def test_published_weights_of_other_classes(weights: torch.Tensor, capsys) -> None:
    with pytest.raises(UserError, match="published_line has 10 classes, but data=digits has 3: evaluate it on data"):
        published(LINE, IMAGES, ["top1"], CLASSES[:3])
    with pytest.raises(UserError, match=r"published_line has 10 classes, but evaluators=\[v2\] has 1,000"):
        published(LINE, IMAGES, ["v2"], None)
    network = published(replace(LINE, pretrained=False), IMAGES, ["top1"], CLASSES[:3])
    assert network.get_parameter("head.weight").shape == (3, 3)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "config",
    [
        ViTConfig(base="vit", patch_size=8, embed_dim=24, depth=1, num_heads=2, gab=True, rel_pos="mlp"),
        TimmConfig(base="test_vit", name="test_vit", pretrained=True),
    ],
)
def test_restored(config: ModelConfig) -> None:
    """At the size of the training, and at another; published weights are not fetched for a network that has its own."""
    trained = build(without_weights(config), image_size=32, num_classes=10, seed=3).eval()
    stored = {
        "model": None,
        "ema": trained.state_dict(),
        "image_size": 32,
        "classes": CLASSES,
        "config": {"model": asdict(config)},
    }
    batch = torch.rand(2, 3, 32, 32)
    assert torch.equal(restore(stored, "ema", 32).eval()(batch), trained(batch))
    assert restore(stored, "ema", 48).eval()(torch.rand(2, 3, 48, 48)).shape == (2, 10)


def test_a_stage_that_is_gone_is_not_used(config, tmp_path: Path) -> None:
    """A job's own disk, as SLURM_TMPDIR names one, does not outlive the job."""
    for stage, used in ((tmp_path, str(tmp_path)), (tmp_path / "gone", None)):
        cfg = config("data=digits", f"data.stage={stage}")
        found = data_of({"config": plain(cfg)})
        assert found == replace(typed(cfg).data, stage=used)
        assert transform_of(found)["eval_crop"] == found.eval_crop


def chosen(config: Callable[..., DictConfig], own: DataConfig | None, *overrides: str) -> Any:
    return data_for(config(*overrides, name="eval").data, own)


def test_settings_are_laid_over_the_checkpoints(config) -> None:
    own = DataConfig(name="digits", reader="digits", root="here", image_size=48, crop=CropConfig(flip=0.2))
    assert OmegaConf.to_object(chosen(config, own)) == own
    found = chosen(config, own, "data.loader=torch", "data.crop.padding=2")
    assert OmegaConf.to_object(found) == replace(own, loader="torch", crop=CropConfig(flip=0.2, padding=2))
    assert chosen(config, own, "data=digits").image_size == 32  # as its file says
    assert chosen(config, None, "data.loader=torch") is None
    with pytest.raises(UserError, match="data.lodaer is not a setting"):
        refuse_unknown({"data": OmegaConf.to_container(chosen(config, own, "+data.lodaer=torch"))})


def test_own_images_keep_their_splits(config, tmp_path: Path, capsys) -> None:
    """What was trained on shall not be what is scored, unless the user asks for it; then that is said."""
    pooled = DataConfig(name="digits", reader="digits", root=str(tmp_path), split="pooled", split_seed=1)
    held = replace(pooled, split="official", holdout=0.2)

    def drawn(own: DataConfig, *overrides: str) -> tuple[Any, ...]:
        images = OmegaConf.to_object(chosen(config, own, *overrides))
        compare_splits(own, images, "val")
        return images.split, images.holdout, images.split_seed

    assert drawn(pooled, "data=digits") == ("pooled", 0, 1)
    assert drawn(held, "data=digits") == ("official", 0.2, 1)
    assert drawn(held, "data=digits", "data.holdout=0") == ("official", 0, 1)  # the published images, never trained on
    assert drawn(pooled, "data=cifar10") == ("official", 0, 0)
    assert drawn(pooled, "data.fraction=0.5") == ("pooled", 0, 1)
    assert capsys.readouterr().out == ""
    assert drawn(pooled, "data.split_seed=2") == ("pooled", 0, 2)
    said = (
        "warning: trained with data.split_seed=1, evaluated with data.split_seed=2: images of the training may be among"
    )
    assert capsys.readouterr().out.startswith(said)
    assert drawn(pooled, "data=digits", "data.split=official") == ("official", 0, 1)
    assert capsys.readouterr().out.startswith("warning: trained with data.split=pooled, evaluated with data.split=off")

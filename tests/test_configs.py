"""Every file of conf/ composes, fits the schema, and trains for a step."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

import train
from conf.checks import check, fill_in
from conf.errors import refuse_unknown
from conf.schema import data_for, plain, typed
from gab.models import build, variant

CONF = Path(__file__).parents[1] / "conf"


def names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def accepted(cfg: DictConfig):
    """The config as `train.run` takes it."""
    refuse_unknown(plain(cfg))
    fill_in(cfg, "cpu")
    config = typed(cfg)
    check(config, 1)
    return config


@pytest.mark.parametrize("name", [name for name in names("model") if name != "timm"])
def test_models(name: str, config: Callable[..., DictConfig]) -> None:
    """Each is built as its name says, on no device."""
    chosen = accepted(config(f"model={name}"))
    assert variant(chosen.model) == name
    with torch.device("meta"):
        build(chosen.model, image_size=224, num_classes=10, seed=0)


@pytest.mark.parametrize("group", ["data", "augment", "optim", "tracking", "experiment", "debug"])
def test_groups(group: str, config: Callable[..., DictConfig]) -> None:
    for name in names(group):
        accepted(config(f"{group}={name}"))


def test_timm_and_evaluation(config: Callable[..., DictConfig]) -> None:
    assert variant(accepted(config("model=timm", "model.name=resnet18")).model) == "resnet18"
    for model in (["model=timm", "model.name=resnet18"], []):
        cfg = config(*model, "data=digits", name="eval")
        cfg.data = data_for(cfg.data, None)
        refuse_unknown(plain(cfg))


@pytest.mark.parametrize("name", ["vit_s16", "vit_m16", "vit_b16", "swin_s"])
def test_the_switch_is_the_only_difference(name: str, config: Callable[..., DictConfig]) -> None:
    without, by_name, by_switch = (
        plain(config(*overrides))
        for overrides in ([f"model={name}"], [f"model={name}_gab"], [f"model={name}", "model.gab=true"])
    )
    assert by_name == by_switch
    without["model"]["gab"] = True
    assert without == by_name


def test_the_default_is_the_published_recipe(config: Callable[..., DictConfig]) -> None:
    """The supplement of the GAB paper."""
    cfg = config()
    cosine = cfg.train.epochs - cfg.optim.cooldown_epochs
    assert (cosine, cfg.train.batch_size, cfg.train.ema_decay) == (400, 2304, 0.99996)
    assert (cfg.optim.lr, cfg.optim.lr_batch, cfg.optim.weight_decay, cfg.optim.warmup_epochs) == (5e-4, None, 0.05, 3)
    assert (cfg.augment.mixup, cfg.augment.cutmix, cfg.augment.erase_prob) == (0.2, 1.0, 0.25)
    assert (cfg.data.image_size, cfg.data.eval_crop, cfg.data.eval_interpolation) == (224, 0.9, "bicubic")
    assert (cfg.augment.randaugment.layers, cfg.augment.randaugment.magnitude) == (2, 9)


# Small enough for a step, whatever the experiment: one block, narrow, on digits.
SHRUNKEN = [
    *("data=digits", "data.image_size=32", "data.loader=torch"),
    *("run.workers=1", "run.device=cpu", "run.compile=false"),
    *("train.epochs=1", "train.max_steps=1", "train.batch_size=16", "train.eval_images=8", "run.eval_batch=8"),
    *("augment.mixing_group=4", "tracking.wandb=disabled", "run.name=run"),
]
SHAPES = {
    "vit": ["model.patch_size=8", "model.embed_dim=24", "model.depth=1", "model.num_heads=3"],
    "compact": ["model.patch_size=8", "model.embed_dim=24", "model.depth=1", "model.num_heads=3"],
    "swin": ["model.embed_dim=12", "model.depths=[1,1]", "model.num_heads=[2,4]", "model.window_size=4"],
    "timm": [],
}


@pytest.mark.usefixtures("figures_are_not_drawn")
@pytest.mark.parametrize("name", names("experiment"))
def test_every_experiment_trains(name: str, config: Callable[..., DictConfig], rows, tmp_path: Path) -> None:
    network = config(f"experiment={name}").model.network
    train.run(config(f"experiment={name}", *SHRUNKEN, *SHAPES[network], f"run.dir={tmp_path}"))
    assert [row["kind"] for row in rows(tmp_path / "run")] == ["start", "train", "eval", "end"]


@pytest.mark.usefixtures("figures_are_not_drawn")
@pytest.mark.parametrize("name", ["vit_s16_gab", "deit_s16", "swin_s_gab"])
def test_every_kind_of_network_trains(name: str, config: Callable[..., DictConfig], rows, tmp_path: Path) -> None:
    train.run(
        config(f"model={name}", *SHRUNKEN, *SHAPES[name.split("_")[0].replace("deit", "vit")], f"run.dir={tmp_path}")
    )
    assert rows(tmp_path / "run", "end")


@pytest.mark.slow
@pytest.mark.usefixtures("figures_are_not_drawn")
def test_full_size_step(config: Callable[..., DictConfig], rows, tmp_path: Path) -> None:
    """ViT-B/16 with GAB at 224 px, batch 8."""
    size = ["data.image_size=224", "train.batch_size=8"]
    train.run(config("model=vit_b16_gab", *SHRUNKEN, *size, f"run.dir={tmp_path}"))
    [start] = rows(tmp_path / "run", "start")
    assert start["sigma"] == [5.0] * 12
    assert rows(tmp_path / "run", "end")


@pytest.mark.parametrize("script", ["train.py", "eval.py"])
def test_help_says_what_to_type(script: str, command) -> None:
    done = command(script, "--help")
    assert done.code == 0
    assert f"python {script} " in done.out
    assert "docs/settings.md" in done.out
    assert "vit_b16_gab" in done.out.partition("\nmodel: ")[2].splitlines()[0]
    assert "_schema" not in done.out
    assert "???" not in done.out

"""The presets of conf/experiment: their comments hold, each has its paper's network, is accepted and trains."""

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
from omegaconf import DictConfig, OmegaConf
from torch import nn

import train
from conf.checks import check
from conf.schema import plain
from data import files
from data.readers import digits
from gab.models import build
from gab.tracking import provenance
from gab.training import distillation, init_from
from gab.training.schedule import effective_lr, learning_rate
from scripts import presets
from tests import replicas

PRESETS = presets.names()

# Parameters as published or measured in the official code (methods sheets): count, classes; of a variant, and with the
# size of its images where another one is in use.
COUNTS = {
    "vit_s16": (21_983_920, 1000),
    "vit_s16_gab": (21_983_944, 1000),
    "vit_s16_gab_per_head": (21_984_064, 1000),
    "vit_s16_gab_frozen": (21_983_944, 1000),
    "vit_s16_rel_gaussian": (21_983_920, 1000),
    "vit_s16_gab_norpe_nope": (21_970_048, 1000),  # without the 13,896 of its relative bias
    "vit_s16_plain_norpe_sincos_2d": (22_049_896, 1000),  # DeiT-S/16 without its class token and that one's position
    "vit_m16": (38_747_208, 1000),
    "vit_m16_gab": (38_747_232, 1000),
    "vit_b16": (86_429_560, 1000),
    "vit_b16_gab": (86_429_584, 1000),
    "deit_t16": (5_717_416, 1000),
    "deit_t16_lape": (5_722_024, 1000),
    "deit_t16_lape_sharing": (5_722_024, 1000),
    "deit_t16_lape_identity": (5_717_416, 1000),
    "deit_t16_lape_gain": (5_717_428, 1000),  # a gain in each of 12 layers
    "deit_t16_lape_channel_gain": (5_719_720, 1000),
    "deit_t16_lape_affine": (5_722_024, 1000),
    "deit_t16_lape_norm": (5_717_416, 1000),
    "deit_t16_lape_norm_gain": (5_717_428, 1000),
    "deit_t16_lape_norm_channel_gain": (5_719_720, 1000),
    "deit_t16_shared": (5_717_416, 1000),
    "deit_t16_unshared": (6_133_480, 1000),
    "deit_t16_sincos_1d": (5_717_416, 1000),
    "deit_t16_shared_sincos_1d": (5_717_416, 1000),
    "deit_t16_shared_sincos_2d": (5_717_416, 1000),
    "deit_t16_lape_sharing_sincos_1d": (5_722_024, 1000),
    "deit_t16_lape_sharing_sincos_2d": (5_722_024, 1000),
    "deit_t16_sincos_2d": (5_717_416, 1000),
    "deit_t16_lape_sincos_1d": (5_722_024, 1000),
    "deit_t16_lape_sincos_2d": (5_722_024, 1000),
    "deit_t16_table": (5_705_836, 1000),
    "deit_t16_life": (5_791_144, 1000),
    "deit_t16_distilled": (5_910_800, 1000),
    "deit_t16_distilled_lape": (5_915_408, 1000),
    "deit_s16": (22_050_664, 1000),
    "deit_s16_lape": (22_059_880, 1000),
    "deit_s16_life": (22_198_120, 1000),
    "deit_s16_distilled": (22_436_432, 1000),
    "deit_s16_distilled_lape": (22_445_648, 1000),
    "deit_b16": (86_567_656, 1000),
    "deit_b16_lape": (86_586_088, 1000),
    "deit_b16_distilled": (87_338_192, 1000),
    "deit_b16_distilled_lape": (87_356_624, 1000),
    "deit3_s16": (22_059_880, 1000),  # DeiT's and two scales in every layer
    "deit3_b16 224": (86_586_088, 1000),
    "deit3_b16 192": (86_546_152, 1000),  # 52 positions fewer
    "deit_t4 32": (5_380_132, 100),
    "deit_t4_life 32": (5_453_860, 100),
    "deit_t4 64": (5_436_296, 200),
    "deit_t4_life 64": (5_510_024, 200),
    "deit_s4 32": (21_376_996, 100),
    "deit_s4_life 32": (21_524_452, 100),
    "swin_t": (28_288_354, 1000),
    "swin_s": (49_606_258, 1000),
    "swinv2_t 256": (27_655_054, 100),
    "swinv2_t_life 256": (27_800_782, 100),
    "swinv2_t1 32": (27_650_734, 100),
    "swinv2_t1 64": (27_650_734, 100),
    "swinv2_t1_life 32": (27_796_462, 100),  # LIFE's 27,805,294 without the 8,832 that it never uses
    "swinv2_t1_life 64": (27_796_462, 100),
    "vit_lite7 32": (3_716_874, 10),
    "vit_lite7_lape 32": (3_720_458, 10),
    "cvt7 32": (3_716_619, 10),
    "cvt7_lape 32": (3_720_203, 10),
    "cct7 32": (3_760_139, 10),
    "cct7_lape 32": (3_763_723, 10),
    "t2t_vit7": (4_310_222, 1000),
    "t2t_vit12": (6_941_902, 1000),  # 6.66M trained ones for 100 classes
    "t2t_vit7_lape": (4_313_806, 1000),
    "vitae_t": (4_886_888, 1000),
    "vitae_6m": (6_614_120, 1000),
    "vitae_13m": (10_834_728, 1000),
    "vitae_s": (24_032_136, 1000),
}
# Networks whose number of parameters stands in no source that we could read.
UNKNOWN = {
    *("swin_t_lape", "swin_t_norpe_learnable", "swin_t_norpe_lape"),
    *("swin_s_lape", "swin_s_norpe_learnable", "swin_s_norpe_lape"),
    *("t2t_vit12_life", "deit_s4", "deit_s4_life"),  # DeiT-S/4 at 64 px
}


def test_every_folder_has_its_presets() -> None:
    assert {name.split("/")[0] for name in PRESETS} == set(presets.TITLES)
    assert len(PRESETS) > 150


@pytest.mark.parametrize("name", PRESETS)
def test_comments(name: str) -> None:
    """They are of their form, and the cost is what the settings make it."""
    assert presets.read(name).cost == presets.cost(name)


def test_the_tables_are_up_to_date() -> None:
    assert presets.TABLES.read_text().partition(presets.MARK)[2].strip() == presets.tables().strip()


BROKEN = {
    "first line": ("# @package _global_\n", ""),
    "command": ("experiment=a/b", "experiment=a/c"),
    "with -m": ("experiment=a/b", "experiment=a/b seed=0,1"),
    "what to expect": ("# expect: 1.5 top-1 (Table 1)\n", ""),
    "expect: NUMBER": ("1.5 top-1 (Table 1)", "1.5 top-1"),
    "one cost": ("# cost: 1\n", ""),
    "what is open": ("# open: the rest\n#   of it\n", ""),
    "in this order": ("# cost: 1\n", "# note: early\n# cost: 1\n"),
    "is not one of": ("# open", "# opens"),
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_comment_of_another_form_is_refused(message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presets, "EXPERIMENTS", tmp_path)
    good = """# @package _global_
# python train.py experiment=a/b
# expect: 1.5 top-1 (Table 1)
# cost: 1
# open: the rest
#   of it
# note: careful
seed: 1
"""
    file = tmp_path / "a" / "b.yaml"
    file.parent.mkdir()
    file.write_text(good)
    assert presets.read("a/b").open == ["the rest of it"]
    before, after = BROKEN[message]
    file.write_text(good.replace(before, after))
    with pytest.raises(ValueError, match=message):
        presets.read("a/b")


@pytest.mark.parametrize("name", PRESETS)
def test_accepted_on_eight_gpus(name: str) -> None:
    config = presets.config(name)
    check(config, 8)
    assert config.data.name in presets.DATA


@pytest.mark.parametrize("name", PRESETS)
def test_parameters(name: str) -> None:
    """As many as published, but for the classes of the data set."""
    config, network = presets.config(name), presets.network(name)
    variant = presets.variant(config.model)
    size = config.data.image_size
    known = COUNTS.get(variant, COUNTS.get(f"{variant} {size}"))
    if known is None:
        assert variant in UNKNOWN
        return
    count, classes = known
    heads = 2 if "distilled" in variant else 1
    more = heads * (presets.DATA[config.data.name][0] - classes) * (network.num_features + 1)
    assert sum(p.numel() for p in network.parameters()) == count + more


# Parts of names that say no network, or say it in other words.
OTHER_WORDS = {"vit", "relpos", "kept", "sigma1", "sigma2", "sigma10", "224", "t", "t1", "tiny", *presets.DATA}
OTHER_WORDS |= {"100ep", "200ep", "data20", "data60"}
NAMED_OTHERWISE = {
    "baselines/vit_s16_plain": "vit_s16_plain_norpe_sincos_2d",
    "gab/pets_s16_gaussian": "vit_s16_gab_norpe_nope",
}


@pytest.mark.parametrize("name", PRESETS)
def test_the_name_tells_network_and_data(name: str) -> None:
    config, stem = presets.config(name), name.split("/")[1]
    variant = presets.variant(config.model)
    assert config.data.name in ([data for data in presets.DATA if stem.startswith(f"{data}_")] or ["imagenet"])
    if name in NAMED_OTHERWISE:
        assert variant == NAMED_OTHERWISE[name]
    else:
        assert set(stem.split("_")) - OTHER_WORDS == set(variant.split("_")) - OTHER_WORDS


SWITCHES = {"_gab": {"gab"}, "_lape": {"join"}, "_life": {"life"}}
SWIN_LAPE = {"lape/swin_t_lape", "lape/swin_s_lape"}  # beside tables: the position comes with its join
NARROWER = {f"life/{data}_t2t_vit12_life" for data in ("cifar10", "cifar100", "tiny_imagenet", "imagenet100")}


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_is_the_only_difference(switch: str) -> None:
    pairs = {name: name.removesuffix(switch) for name in PRESETS if name.endswith(switch)}
    assert len(pairs) > 15
    for name, without in pairs.items():
        if without not in PRESETS:
            without += "_learnable"
        before, after = (OmegaConf.to_container(OmegaConf.structured(presets.config(each))) for each in (without, name))
        changed = {key for key in after["model"] if after["model"][key] != before["model"][key]}
        more = {"position"} if name in SWIN_LAPE else {"embed_dim"} if name in NARROWER else set()
        assert changed == SWITCHES[switch] | more
        assert {**before, "model": None} == {**after, "model": None}


# Epochs with cooldown, global batch, peak learning rate, weight decay, drop-path (methods sheets, and their commands).
RECIPES = {
    "gab/imagenet_b16_gab": (410, 2304, 5e-4, 0.05, 0.1),
    "gab/dogs_m16_gab": (200, 128, 0.01, 5e-4, 0.0),
    "baselines/deit_b16": (300, 1024, 1e-3, 0.05, 0.1),
    "baselines/deit3_s16": (800, 2048, 4e-3, 0.05, 0.05),
    "baselines/deit3_b16": (800, 2048, 3e-3, 0.05, 0.2),
    "baselines/deit3_b16_224": (20, 512, 1e-5, 0.1, 0.2),
    "baselines/vit_s16_plain": (90, 1024, 1e-3, 0.1, 0.0),
    "baselines/swin_s": (300, 1024, 1e-3, 0.05, 0.3),
    "baselines/swin_t": (300, 1024, 1e-3, 0.05, 0.2),
    "lape/deit_b16_distilled_lape": (300, 1024, 1e-3, 0.05, 0.1),
    "lape/t2t_vit7_lape": (310, 512, 1e-3, 0.03, 0.1),
    "lape/cifar10_cvt7_lape": (310, 128, 5.5e-4, 0.06, 0.1),
    "lape/cifar100_vit_lite7": (310, 128, 6e-4, 0.06, 0.1),
    "life/imagenet100_deit_s16_life": (300, 512, 5e-4, 0.05, 0.1),
    "life/cifar100_swinv2_t_life": (300, 512, 5e-4, 0.05, 0.1),
    "vitae/vitae_13m": (310, 512, 1e-3, 0.03, 0.1),
    "vitae/vitae_s": (310, 512, 5e-4, 0.05, 0.1),
}


@pytest.mark.parametrize("name", RECIPES)
def test_the_published_recipe(name: str) -> None:
    config = presets.config(name)
    peak = effective_lr(config.optim, config.train.batch_size)
    found = (config.train.epochs, config.train.batch_size, peak, config.optim.weight_decay, config.model.drop_path_rate)
    assert found == pytest.approx(RECIPES[name])


# Of each file of conf/optim, in a recipe that takes it: the rate at the first step, at the end of the warm-up, in the
# middle of the cosine and at the last step, and the norm that gradients are clipped to. Computed by hand from the
# methods sheets, as are the epochs of the second and third.
RATES = {
    "gab": ("gab/imagenet_b16_gab", (3, 200), (1e-6, 4.99930746e-4, 2.505e-4, 1e-6), None),
    "gab_finetune": ("gab/dogs_m16_gab", (0, 100), (0.01, 0.01, 5e-3, 6.168375e-7), None),
    "deit": ("baselines/deit_b16", (5, 150), (1e-6, 9.99321617e-4, 5.05e-4, 1.0027141e-5), None),
    "deit3": ("baselines/deit3_s16", (5, 400), (1e-6, 3.99961544e-3, 2.005e-3, 1.00153827e-5), 1.0),
    "swin": ("baselines/swin_t", (20, 160), (1e-6, 1e-3, 5.05e-4, 1e-5), 5.0),
    "t2t": ("baselines/t2t_vit7", (10, 150), (1e-6, 9.97288341e-4, 5.05e-4, 1e-5), None),
    "vitae": ("vitae/vitae_t", (10, 150), (1e-6, 9.97288341e-4, 5.05e-4, 1e-5), None),
    "cct_cifar10": ("baselines/cifar10_cct7", (10, 150), (1e-5, 5.48520913e-4, 2.8e-4, 1e-5), None),
    "cct_cifar100": ("baselines/cifar100_cct7", (10, 150), (1e-6, 5.98383961e-4, 3.05e-4, 1e-5), None),
    "finetune384": ("README", (5, 15), (1e-6, 5e-6, 5e-6, 5e-6), None),
}


def test_every_optimisation_has_its_rates() -> None:
    assert RATES.keys() == {path.stem for path in (presets.ROOT / "conf" / "optim").glob("*.yaml")}


@pytest.mark.parametrize("name", RATES)
def test_the_published_rates(name: str) -> None:
    recipe, (warm, middle), rates, clip_grad = RATES[name]
    cfg = presets.composed("baselines/deit_s16" if recipe == "README" else recipe).copy()
    file = OmegaConf.load(presets.ROOT / "conf" / "optim" / f"{name}.yaml")
    if recipe == "README":
        cfg.train.epochs, cfg.train.batch_size, cfg.optim = 30, 512, OmegaConf.merge(cfg.optim, file)
    assert cfg.optim == OmegaConf.merge(cfg.optim, file)  # the recipe changes nothing of it
    steps, epochs = 1_281_167 // cfg.train.batch_size, cfg.train.epochs
    shape = {"batch_size": cfg.train.batch_size, "steps_per_epoch": steps, "epochs": epochs}
    at = (0, warm * steps, middle * steps, epochs * steps - 1)
    found = [learning_rate(step, optim=cfg.optim, **shape) for step in at]
    assert found == pytest.approx(rates, rel=1e-6)
    assert cfg.optim.clip_grad == clip_grad


HALF = ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
CIFAR10 = ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616])
CIFAR100 = ([0.5071, 0.4867, 0.4408], [0.2675, 0.2565, 0.2761])

# Probability of erasing, label smoothing, mixup, cutmix, repeats, evaluation crop, decay of the average (0: none); mean
# and standard deviation of the images, resampling of crops and in evaluation.
REGULARISERS = {
    "gab/imagenet_b16_gab": (0.25, 0.1, 0.2, 1.0, 1, 0.9, 0.99996, HALF, "random", "bicubic"),
    "gab/dogs_m16_gab": (0.0, 0.0, 0.0, 0.0, 1, 0.875, 0, IMAGENET, "bilinear", "bilinear"),
    "baselines/deit_b16": (0.25, 0.1, 0.8, 1.0, 3, 0.875, 0.99996, IMAGENET, "bicubic", "bicubic"),
    "baselines/deit3_s16": (0.0, 0.0, 0.8, 1.0, 3, 1, 0.99996, IMAGENET, "bicubic", "bicubic"),
    "baselines/deit3_b16_224": (0.0, 0.1, 0.8, 1.0, 1, 1, 0.99996, IMAGENET, "bicubic", "bicubic"),
    "baselines/vit_s16_plain": (0.0, 0.0, 0.2, 0.0, 1, 0.875, 0, HALF, "bilinear", "bilinear"),
    "baselines/swin_s": (0.25, 0.1, 0.8, 1.0, 1, 0.875, 0, IMAGENET, "bicubic", "bicubic"),
    "baselines/cifar100_cct7": (0.0, 0.1, 0.8, 1.0, 1, 1, 0, CIFAR100, "random", "bicubic"),
    "lape/deit_b16_distilled_lape": (0.25, 0.1, 0.8, 1.0, 3, 1, 0.99996, IMAGENET, "bicubic", "bicubic"),
    "lape/t2t_vit7_lape": (0.25, 0.1, 0.8, 1.0, 1, 0.9, 0.99996, IMAGENET, "random", "bicubic"),
    "lape/cifar10_cvt7_lape": (0.0, 0.1, 0.8, 1.0, 1, 1, 0, CIFAR10, "random", "bicubic"),
    "lape/cifar100_vit_lite7_lape": (0.25, 0.1, 0.8, 1.0, 1, 1, 0, CIFAR100, "random", "bicubic"),
    "life/imagenet100_deit_s16_life": (0.25, 0.1, 0.8, 1.0, 3, 0.875, 0.99996, IMAGENET, "bicubic", "bicubic"),
    "vitae/vitae_13m": (0.25, 0.1, 0.8, 1.0, 1, 0.9, 0.99996, IMAGENET, "random", "bicubic"),
}


@pytest.mark.parametrize("name", REGULARISERS)
def test_the_published_regularisers(name: str) -> None:
    config = presets.config(name)
    augment, data = config.augment, config.data
    found = (augment.erase_prob, augment.label_smoothing, augment.mixup, augment.cutmix)
    found = (*found, data.repeats, data.eval_crop, config.train.ema_decay or 0)
    *numbers, images, crops, evaluation = REGULARISERS[name]
    assert found == pytest.approx(numbers)
    assert (data.mean, data.std) == images
    assert (data.crop.interpolation, data.eval_interpolation) == (crops, evaluation)


# What makes a step small, whatever the preset: one narrow block, 16 images of 32 px.
SMALL = [
    *("run.device=cpu", "run.compile=false", "run.workers=1", "run.eval_batch=8", "run.name=run", "run.log_every=1"),
    *("train.epochs=1", "train.max_steps=1", "train.batch_size=16", "train.eval_images=8", "train.ema_decay=0.9"),
    *("data.loader=torch", "data.image_size=32", "augment.mixing_group=4", "tracking.wandb=disabled"),
]
VIT = ["model.patch_size=8", "model.embed_dim=24", "model.depth=1", "model.num_heads=3"]
SWIN = ["model.embed_dim=12", "model.depths=[1,1]", "model.num_heads=[2,4]", "model.window_size=4"]
SHAPES = {
    "vit": VIT,
    "compact": VIT[1:],
    "t2t": [*VIT[1:], "model.token_width=8"],
    "vitae": [*VIT[1:], "model.token_widths=[8,8]", "model.prm_widths=[4,4]", "model.groups=6"],
    "swin": SWIN,
    "swinv2": ["model.patch_size=4", *SWIN],
}


def small(name: str, *more: str) -> DictConfig:
    """The preset with its step made small."""
    cfg = presets.composed(name).copy()
    crop = ["data.crop.size=40"] if cfg.data.crop.size else []
    cfg.merge_with_dotlist([*SMALL, *SHAPES[cfg.model.network], *crop, *more])
    return cfg


@pytest.fixture
def no_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small networks in place of published weights: of the run's network without its ideas, and a teacher."""

    def read_source(init: Any, model: Any) -> init_from.Source:
        plain = dataclasses.replace(model, gab=False, rel_pos="mlp", rel_pos_start="default")
        return init_from.Source(build(plain, image_size=32, num_classes=7, seed=1).state_dict(), None)

    def load_teacher(config: Any, num_classes: int, sizes: Any) -> nn.Module:
        return timm.create_model("test_resnet", num_classes=num_classes)

    monkeypatch.setattr(init_from, "read_source", read_source)
    monkeypatch.setattr(distillation, "load_teacher", load_teacher)


read_digits = cache(digits.open_split)


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without worker processes, reading the images again, figures, and looking for where the code comes from."""
    monkeypatch.setattr(digits, "open_split", lambda _, split: read_digits(Path(), split))
    monkeypatch.setattr(train, "loader_options", lambda *_: {"workers": 0})
    monkeypatch.setattr(train.figures, "draw", lambda *_: [])
    monkeypatch.setattr(provenance, "save", lambda *_: {})


TRAINED: dict[str, dict[str, Any]] = {}  # their rows


@pytest.mark.usefixtures("no_downloads", "no_waiting")
@pytest.mark.parametrize("name", PRESETS)
def test_trains_a_step(name: str, rows, tmp_path: Path) -> None:
    """On digits, the whole way of `train.py`. Presets that are one run when they are made small share it."""
    cfg = small(name, "data.name=digits", "data.reader=digits")
    if cfg.data.crop.kind == "padded":  # which reads no scale: so it must be that of digits' own file
        cfg.data.crop.scale = files.usual("digits").crop.scale
    cfg.model.base = "small"
    if cfg.init.source:
        cfg.init.source = "published"
    step = str(plain(cfg))
    if step not in TRAINED:
        cfg.data.root = cfg.run.dir = str(tmp_path)
        train.run(cfg)
        assert rows(tmp_path / "run", "end")
        [TRAINED[step]] = rows(tmp_path / "run", "train")
    assert 0 < TRAINED[step]["loss"] < 10


ON_REPLICAS = [
    *("gab/imagenet_s16_gab", "vitae/vitae_t_data60", "life/imagenet100_deit_t16_life"),
    *("life/tiny_imagenet_deit_t4_life", "life/cifar10_deit_t4_life", "lape/cifar100_cct7_lape"),
    *("gab/pets_s16_gab", "gab/caltech101_s16_gab", "gab/cars_s16_gab", "gab/dogs_s16_gab"),
]


def test_every_data_set_has_a_replica() -> None:
    assert {presets.config(name).data.name for name in ON_REPLICAS} == presets.DATA.keys()
    assert {presets.config(name).data.name for name in PRESETS} == presets.DATA.keys()


@pytest.mark.usefixtures("no_downloads", "no_waiting")
@pytest.mark.parametrize("name", ON_REPLICAS)
def test_trains_a_step_on_its_own_images(name: str, rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As its data set is published, with its split, crops and repeats."""
    data = presets.config(name).data
    replicas.trust(monkeypatch)
    replicas.make(data.name, tmp_path / "data", per_class=12 if data.name != "imagenet100" else 1)
    train.run(small(name, f"data.root={tmp_path / 'data'}", f"run.dir={tmp_path}"))
    [start], [end] = rows(tmp_path / "run", "start"), rows(tmp_path / "run", "end")
    assert start["train_images"] >= 16
    assert ("test_top1" in end) == (data.split == "pooled")

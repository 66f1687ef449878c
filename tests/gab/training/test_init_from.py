"""Where a run begins: the same weights for every arm, moved to its images, anew where the config says so."""

import dataclasses
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from timm.models import _registry
from torch import nn

from gab.config import GaussianConfig, InitConfig, ModelConfig, SwinConfig, TimmConfig, ViTConfig
from gab.errors import UserError
from gab.models import build
from gab.training import checkpoint
from gab.training.digest import weights_digest
from gab.training.init_from import Start, start_from

CLASSES = ["cat", "dog", "fox"]
# The network of timm's test_vit_relpos, whose images have 160 px and whose classes are 1000.
RELPOS = ViTConfig(
    base="vit_test", patch_size=16, embed_dim=96, depth=9, num_heads=3, mlp_ratio=2, qkv_bias=False, layer_scale=1e-6,
    class_token=False, pool="avg", position="none", rel_pos="mlp", init="pytorch",
)  # fmt: skip
DEIT = ViTConfig(base="deit", patch_size=8, embed_dim=24, depth=2, num_heads=3)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Weights that timm believes to be those of test_vit_relpos."""
    torch.manual_seed(0)
    weights = timm.create_model("test_vit_relpos").state_dict()
    path = tmp_path_factory.mktemp("published") / "weights.pth"
    torch.save(weights, path)
    with pytest.MonkeyPatch.context() as patch:
        cfg = _registry._model_pretrained_cfgs["test_vit_relpos"]
        patch.setitem(_registry._model_pretrained_cfgs, "test_vit_relpos", dataclasses.replace(cfg, file=str(path)))
        yield weights


def begin(source: object, model: ModelConfig, size: int = 96, seed: int = 0, **init) -> tuple[nn.Module, Start]:
    config = InitConfig(source=str(source), **init)
    return start_from(config, model, image_size=size, classes=CLASSES, seed=seed)


def write(path: Path, model: ViTConfig, size: int = 32, seed: int = 5, classes: list[str] = CLASSES, **more) -> Path:
    """A checkpoint of ours; its averaged weights are those of another seed."""
    raw, ema = (build(model, image_size=size, num_classes=len(classes), seed=s).state_dict() for s in (seed, seed + 1))
    content = {"model": raw, "ema": ema, "classes": classes, "config": {"data": {"image_size": size}}, **more}
    checkpoint.write(path, content)
    return path


# -- the GAB paper's protocol -----------------------------------------------------------------------------------------


def test_both_arms_share_all_that_they_share(published) -> None:
    """The paper's: published weights, a new head, and a relative bias that starts anew in both arms alike."""
    without, with_gab = (begin("test_vit_relpos", replace(RELPOS, gab=gab), fresh=["rel_pos"]) for gab in (False, True))
    first, second = weights_digest(without[0]), weights_digest(with_gab[0])
    assert first.items() < second.items()
    assert {name.split(".")[-2] for name in second.keys() - first.keys()} == {"gaussian"}
    own = weights_digest(build(RELPOS, image_size=96, num_classes=3, seed=0))
    drawn = {name for name in first if first[name] == own[name]}
    assert {n for n in first if ".rel_pos." in n or n.startswith("head.")} <= drawn
    assert torch.equal(without[0].blocks[3].attn.qkv.weight, published["blocks.3.attn.qkv.weight"])
    assert without[1].digest == with_gab[1].digest


def test_the_relative_bias_can_be_kept(published) -> None:
    """The control that the paper lacks."""
    kept, _ = begin("test_vit_relpos", RELPOS)
    anew, _ = begin("test_vit_relpos", RELPOS, fresh=["rel_pos"])
    name = "blocks.0.attn.rel_pos.mlp.fc2.weight"
    assert torch.equal(kept.state_dict()[name], published[name])
    assert not torch.equal(anew.state_dict()[name], published[name])
    seeds = [begin("test_vit_relpos", RELPOS, seed=s, fresh=["rel_pos"])[0].state_dict()[name] for s in (0, 1)]
    assert torch.equal(seeds[0], anew.state_dict()[name])
    assert not torch.equal(*seeds)


def test_the_relative_bias_can_start_as_the_gaussian(published) -> None:
    config = replace(RELPOS, rel_pos="table", rel_pos_start="gaussian")
    model, start = begin("test_vit_relpos", config, fresh=["rel_pos"])
    expected = build(config, image_size=96, num_classes=3, seed=0)
    assert torch.equal(model.blocks[0].attn.rel_pos(), expected.blocks[0].attn.rel_pos())
    assert "not used rel_pos" in start.sentence


def test_what_was_done_is_said(published) -> None:
    _, start = begin("test_vit_relpos", replace(RELPOS, gab=True), fresh=["rel_pos"])
    assert start.sentence == (
        f"weights:    {len(published) - 38} tensors of test_vit_relpos, {start.digest}; moved from 160 to 96 px; "
        "anew rel_pos (36 tensors), gaussian (18 tensors), head (2 tensors)"
    )


# -- checkpoints of ours ----------------------------------------------------------------------------------------------


def test_positions_tables_and_sigma_move_with_the_images(tmp_path: Path) -> None:
    config = replace(DEIT, gab=True, rel_pos="bias")
    path = write(tmp_path / "last.pt", config, size=32)
    model, start = begin(path, config, size=64)
    expected = build(config, image_size=32, num_classes=3, seed=5)
    expected.set_input_size(64)
    assert weights_digest(model) == weights_digest(expected)
    assert model.blocks[0].attn.gaussian.sigma.item() == 10.0
    assert "moved from 32 to 64 px" in start.sentence
    assert "anew" not in start.sentence


def test_the_size_is_that_of_the_weights_not_of_the_config(tmp_path: Path) -> None:
    """Of a run that was stopped while it trained on smaller images."""
    path = write(tmp_path / "last.pt", DEIT, size=32, config={"data": {"image_size": 64}}, image_size=32)
    assert "moved from 32 to 64 px" in begin(path, DEIT, size=64)[1].sentence


def test_raw_or_averaged_weights(tmp_path: Path) -> None:
    path = write(tmp_path / "last.pt", DEIT)
    raw, ema = (begin(path, DEIT, size=32, weights=kind) for kind in ("raw", "ema"))
    for (model, _), seed in ((raw, 5), (ema, 6)):
        assert weights_digest(model) == weights_digest(build(DEIT, image_size=32, num_classes=3, seed=seed))
    assert raw[1].digest != ema[1].digest
    path = write(tmp_path / "without.pt", DEIT, ema=None)
    with pytest.raises(UserError, match=r"holds no averaged weights: set init\.weights=raw"):
        begin(path, DEIT, weights="ema")


@pytest.mark.parametrize("classes", [["cat", "dog"], ["cat", "fox", "dog"]])
def test_a_head_of_other_classes_is_replaced(classes: list[str], tmp_path: Path) -> None:
    """Of other names too, where there are as many."""
    model, start = begin(write(tmp_path / "last.pt", DEIT, classes=classes), DEIT, size=32)
    fresh = build(DEIT, image_size=32, num_classes=3, seed=0)
    assert torch.equal(model.head.weight, fresh.head.weight)
    assert start.sentence.endswith("anew head (2 tensors)")


@pytest.mark.parametrize("part", ["head", "rel_pos", "position", "gaussian"])
def test_parts_that_start_anew(part: str, tmp_path: Path) -> None:
    config = replace(DEIT, gab=True, rel_pos="table", join="lape", gaussian=GaussianConfig(class_bias="learned"))
    path = write(
        tmp_path / "last.pt", replace(config, gaussian=GaussianConfig(amplitude=3.0, sigma=1.0, class_bias="learned"))
    )
    patterns = {"head": "head.", "rel_pos": ".rel_pos.", "position": ("pos_embed", "join."), "gaussian": ".gaussian."}
    model, _ = begin(path, config, size=32, fresh=[part])
    source = checkpoint.load(path)["model"]
    own = build(config, image_size=32, num_classes=3, seed=0).state_dict()
    for name, value in model.state_dict().items():
        wanted = patterns[part] if isinstance(patterns[part], tuple) else (patterns[part],)
        of = own if any(word in name for word in wanted) else source
        assert torch.equal(value, of[name]), name


def test_sinusoids_are_computed_not_taken(tmp_path: Path) -> None:
    path = write(tmp_path / "last.pt", DEIT)
    model, _ = begin(path, replace(DEIT, position="sincos_2d"), size=32)
    expected = build(replace(DEIT, position="sincos_2d"), image_size=32, num_classes=3, seed=0)
    assert torch.equal(model.pos_embed, expected.pos_embed)


def test_swin_moves_too(tmp_path: Path) -> None:
    config = SwinConfig(base="s", embed_dim=12, depths=[1, 1], num_heads=[2, 4], window_size=4, gab=True)
    path = write(tmp_path / "last.pt", config, size=32)
    model, start = begin(path, replace(config, gab=False), size=64)
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
    assert "not used gaussian (4)" in start.sentence
    table = checkpoint.load(path)["model"]["layers.0.blocks.0.attn.relative_position_bias_table"]
    assert torch.equal(model.layers[0].blocks[0].attn.relative_position_bias_table, table)


def test_swin_with_larger_windows(tmp_path: Path) -> None:
    """As for fine-tuning on larger images: tables are interpolated, sigma keeps its extent."""
    config = SwinConfig(base="s", embed_dim=12, depths=[1, 1], num_heads=[2, 4], window_size=4, gab=True)
    path = write(tmp_path / "last.pt", config, size=32)
    model, _ = begin(path, replace(config, window_size=8), size=64)
    expected = build(config, image_size=32, num_classes=3, seed=5)
    expected.set_input_size(64, window_size=8)
    assert weights_digest(model) == weights_digest(expected)
    assert model.layers[0].blocks[0].attn.gaussian.sigma.item() == 10.0


# -- files of others --------------------------------------------------------------------------------------------------


def test_an_official_file(tmp_path: Path) -> None:
    """LaPE's names, 1000 classes, 32 px, for a run with the Gaussian at 64."""
    source = build(replace(DEIT, join="lape"), image_size=32, num_classes=1000, seed=5)
    pattern, theirs = r"^join\.norms\.(\d+)\.", r"blocks.\1.pe_norm."
    released = {re.sub(pattern, theirs, name): value for name, value in source.state_dict().items()}
    torch.save({"model": released}, tmp_path / "official.pth")
    model, start = begin(tmp_path / "official.pth", replace(DEIT, join="lape", gab=True), size=64)
    source.set_input_size(64)
    assert torch.equal(model.pos_embed, source.pos_embed)
    assert torch.equal(model.join.norms[1].weight, source.join.norms[1].weight)
    assert "moved from 32 to 64 px; anew gaussian (4 tensors), head (2 tensors)" in start.sentence


def test_a_foreign_network(tmp_path: Path) -> None:
    source = timm.create_model("test_resnet")
    torch.save(source.state_dict(), tmp_path / "w.pth")
    model, start = begin(tmp_path / "w.pth", TimmConfig(name="test_resnet"), size=32)
    for name, value in source.state_dict().items():
        if not name.startswith("fc."):
            assert torch.equal(model.state_dict()[name], value), name
    assert "moved" not in start.sentence
    assert "head" in start.sentence


# -- what cannot be ---------------------------------------------------------------------------------------------------


def test_another_network_is_refused_with_what_differs(tmp_path: Path) -> None:
    path = write(tmp_path / "last.pt", DEIT)
    with pytest.raises(UserError, match=r"another network \(it lacks blocks\.2\..*\): give one that model has"):
        begin(path, replace(DEIT, depth=3), size=32)
    with pytest.raises(UserError, match=r"it does not know blocks\.1\."):
        begin(path, replace(DEIT, depth=1), size=32)
    with pytest.raises(UserError, match=r"it has in another shape .*cls_token"):
        begin(path, replace(DEIT, embed_dim=48), size=32)


def test_a_source_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.pth cannot be read"):
        begin(tmp_path / "absent.pth", DEIT)
    with pytest.raises(UserError, match=r"absent\.pt cannot be read"):
        begin("absent.pt", DEIT)
    write(tmp_path / "last.pt", DEIT)
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(tmp_path / "last.pt", tmp_path / "checkpoints")
    with pytest.raises(UserError, match=r"there is no checkpoint .*: take .*/checkpoints/last\.pt"):
        begin(tmp_path, DEIT)
    with pytest.raises(UserError, match=r"timm has no model named 'test_vit_relpo'; did you mean test_vit_relpos"):
        begin("test_vit_relpo", RELPOS)
    with pytest.raises(UserError, match="timm has no weights of test_mambaout"):
        begin("test_mambaout", RELPOS)


def test_weights_of_others_are_not_called_averaged(published, tmp_path: Path) -> None:
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "w.pth")
    for source, model in (("test_vit_relpos", RELPOS), (tmp_path / "w.pth", TimmConfig(name="test_resnet"))):
        with pytest.raises(UserError, match=r"is for checkpoints of this project: set init\.weights=raw"):
            begin(source, model, weights="ema")


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    """Not of the path, nor of what torch writes around the tensors."""
    first, same, other = (
        begin(write(tmp_path / f"{number}.pt", DEIT, seed=seed, step=number), DEIT, size=32)[1].digest
        for number, seed in ((0, 5), (1, 5), (2, 6))
    )
    assert first == same != other

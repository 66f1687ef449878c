import logging
import subprocess
import sys

import pytest
import timm
import torch
from omegaconf import OmegaConf

from gab.errors import UserError
from gab.models import gaussians
from gab.models.swin_names import SMALL as SWIN_SMALL
from gab.models.vit_names import RELPOS, sized

SMALL, MEDIUM, BASE = (sized(RELPOS, size) for size in ("small", "medium", "base"))
TINY = {"embed_dim": 24, "num_heads": 3, "depth": 2}
NAMES = [f"vit_relpos_{size}_patch16_gab_224" for size in ("small", "medium", "base")]
SWIN = "swin_small_patch4_window7_gab_224"


@pytest.mark.parametrize(("name", "cfg"), [*zip(NAMES, (SMALL, MEDIUM, BASE), strict=True), (SWIN, SWIN_SMALL)])
def test_registered_with_the_evaluation_settings_of_the_base(name, cfg):
    assert timm.is_model(name)
    assert cfg.gab
    ours = timm.get_pretrained_cfg(name)
    theirs = timm.get_pretrained_cfg(name.replace("_gab", "") + "." + ours.tag)
    for key in ("input_size", "crop_pct", "interpolation", "mean", "std", "classifier", "first_conv", "num_classes"):
        assert getattr(ours, key) == getattr(theirs, key)
    assert ours.hf_hub_id == theirs.hf_hub_id


def test_import_is_cheap():
    """Beyond what timm itself imports, which is W&B where it is installed."""
    code = (
        "import sys, timm; before = set(sys.modules); import gab; "
        "print({'ffcv', 'numba', 'hydra', 'omegaconf', 'wandb'} & (set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_keywords_of_create_model():
    model = timm.create_model(
        NAMES[0], num_classes=7, img_size=64, in_chans=1, drop_path_rate=0.2, per_head=True, amplitude=1.5, **TINY
    )
    assert model(torch.randn(1, 1, 64, 64)).shape == (1, 7)
    assert model.blocks[1].drop_path1.p == pytest.approx(0.2)
    assert gaussians(model)[1].amplitude.tolist() == [1.5] * 3
    assert timm.create_model(NAMES[0], **TINY).blocks[1].drop_path1.p == 0
    assert timm.create_model(NAMES[0], gab=False, position="learnable", **TINY).pos_embed.shape == (1, 196, 24)
    with pytest.raises(TypeError, match="sigmma"):
        timm.create_model(NAMES[0], sigmma=3)


def saved(tmp_path, model):
    path = tmp_path / "weights.pth"
    torch.save(model.state_dict(), path)
    return {"file": str(path)}


def test_pretrained_vit_takes_timms_weights_and_its_own_gaussian(tmp_path):
    theirs = timm.create_model("vit_relpos_small_patch16_224", **TINY)
    ours = timm.create_model(NAMES[0], pretrained=True, pretrained_cfg_overlay=saved(tmp_path, theirs), **TINY)
    weights = ours.state_dict()
    expected = theirs.state_dict()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    extra = weights.keys() - expected.keys()
    assert extra == {f"blocks.{i}.attn.gaussian.{name}" for i in range(2) for name in ("amplitude", "sigma")}
    assert [g.sigma.item() for g in gaussians(ours).values()] == [5, 5]
    loaded = timm.create_model(NAMES[0], **TINY).load_state_dict(expected, strict=False)
    assert set(loaded.missing_keys) == extra
    assert not loaded.unexpected_keys


def test_pretrained_at_another_size_and_number_of_classes(tmp_path, caplog):
    start = timm.create_model(NAMES[0], rel_pos="bias", position="learnable", **TINY)
    with torch.no_grad():
        gaussians(start)[1].sigma.fill_(3.5)
        start.blocks[0].attn.rel_pos.relative_position_bias_table.fill_(0.25)
    overlay = saved(tmp_path, start)
    options = {
        "rel_pos": "bias",
        "position": "learnable",
        "pretrained": True,
        "pretrained_cfg_overlay": overlay,
        **TINY,
    }
    with caplog.at_level(logging.WARNING):
        ours = timm.create_model(NAMES[0], img_size=384, num_classes=3, **options)
    assert not caplog.records
    assert gaussians(ours)[1].sigma.item() == pytest.approx(6.0)
    assert torch.allclose(ours.blocks[0].attn.rel_pos.relative_position_bias_table, torch.tensor(0.25), atol=1e-4)
    assert ours.pos_embed.shape == (1, 24 * 24, 24)
    assert torch.equal(ours.blocks[0].mlp.fc1.weight, start.blocks[0].mlp.fc1.weight)


OWN = [  # what shows the size of the images that weights are of
    {"rel_pos": "none", "position": "learnable"},
    {"rel_pos": "none", "position": "learnable", "join": "lape", "class_token": True},
    {"rel_pos": "bias", "class_token": True},
    {"rel_pos": "table"},
    {"rel_pos": "table_norm"},
]


def own(size, **options):
    """A network of another size than timm's, as training leaves it: all parameters different."""
    model = timm.create_model(NAMES[0], img_size=size, **{**TINY, **options})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.rand(parameter.shape))
    return model


@pytest.mark.parametrize("size", [64, (64, 128)])
@pytest.mark.parametrize("options", OWN, ids=lambda options: "-".join(map(str, options.values())))
def test_pretrained_takes_ones_own_weights_of_the_same_size_as_they_are(tmp_path, options, size):
    model = own(size, **options)
    overlay = saved(tmp_path, model)
    again = timm.create_model(
        NAMES[0], img_size=size, pretrained=True, pretrained_cfg_overlay=overlay, **options, **TINY
    )
    weights = model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in again.state_dict().items())


@pytest.mark.parametrize("options", OWN, ids=lambda options: "-".join(map(str, options.values())))
def test_pretrained_moves_ones_own_weights_as_set_input_size_does(tmp_path, options):
    model = own(64, **options)
    overlay = saved(tmp_path, model)
    moved = timm.create_model(NAMES[0], img_size=96, pretrained=True, pretrained_cfg_overlay=overlay, **options, **TINY)
    model.set_input_size(96)
    weights = model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in moved.state_dict().items())
    assert moved.blocks[0].attn.gaussian.sigma.item() == pytest.approx(model.blocks[0].attn.gaussian.sigma.item())


def test_what_is_not_seen_in_weights_is_said_in_words(tmp_path):
    """A relative MLP has no size, and positions of a grid that is not square may be of many."""
    model = own(64)
    options = {"pretrained": True, "img_size": 96, **TINY}
    overlay = {**saved(tmp_path, model), "input_size": (3, 64, 64)}
    moved = timm.create_model(NAMES[0], pretrained_cfg_overlay=overlay, **options)
    assert gaussians(moved)[1].sigma.item() == pytest.approx(1.5 * gaussians(model)[1].sigma.item())
    wide = own((64, 96), position="learnable")
    overlay = saved(tmp_path, wide)
    with pytest.raises(UserError, match="pos_embed of the weights has 24 rows, .* give the size of the images"):
        timm.create_model(NAMES[0], pretrained_cfg_overlay=overlay, position="learnable", **options)
    overlay |= {"input_size": (3, 64, 96)}
    moved = timm.create_model(NAMES[0], pretrained_cfg_overlay=overlay, position="learnable", **options)
    wide.set_input_size(96)
    assert torch.equal(moved.pos_embed, wide.pos_embed)


@pytest.mark.parametrize("position", ["sincos_1d", "sincos_2d"])
def test_pretrained_sinusoids_are_computed_for_another_size(tmp_path, position):
    options = {"gab": False, "position": position, **TINY}
    overlay = saved(tmp_path, timm.create_model(NAMES[0], **options))
    ours = timm.create_model(NAMES[0], pretrained=True, pretrained_cfg_overlay=overlay, img_size=64, **options)
    assert torch.equal(ours.pos_embed, timm.create_model(NAMES[0], img_size=64, **options).pos_embed)
    assert not ours.pos_embed.requires_grad


def test_pretrained_swin(tmp_path):
    shape = {"embed_dim": 12, "depths": (2, 2), "num_heads": (2, 4), "window_size": 7}
    theirs = timm.create_model("swin_small_patch4_window7_224", **shape)
    overlay = saved(tmp_path, theirs)
    ours = timm.create_model(SWIN, pretrained=True, pretrained_cfg_overlay=overlay, **shape)
    expected = theirs.state_dict()
    assert all(torch.equal(ours.state_dict()[name], expected[name]) for name in expected)
    with torch.no_grad():
        gaussians(ours)[1].sigma.fill_(3.5)
    options = {"pretrained": True, "pretrained_cfg_overlay": saved(tmp_path, ours), **shape}
    wider = timm.create_model(SWIN, img_size=448, **(options | {"window_size": 14}))
    assert gaussians(wider)[1].sigma.item() == pytest.approx(7)
    same = timm.create_model(SWIN, img_size=448, **options)
    assert gaussians(same)[1].sigma.item() == pytest.approx(3.5)


def test_save_and_load_as_timm_does(tmp_path):
    model = timm.create_model(NAMES[0], per_head=True, num_classes=4, **TINY)
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    images = torch.randn(1, 3, 224, 224)
    assert torch.equal(again.eval()(images), model.eval()(images))


@pytest.mark.parametrize(
    ("name", "cfg"),
    [("vit_s16_gab", SMALL), ("vit_m16_gab", MEDIUM), ("vit_b16_gab", BASE), ("swin_s_gab", SWIN_SMALL)],
)
def test_config_files_describe_the_registered_networks(name, cfg, pytestconfig):
    """The Gaussian is all that `…_gab` adds; recipes differ from timm's defaults in drop-path alone."""
    folder = pytestconfig.rootpath / "conf" / "model"
    plain, gab = (OmegaConf.load(folder / f"{n}.yaml") for n in (name.removesuffix("_gab"), name))
    assert gab.pop("defaults") == [name.removesuffix("_gab"), "_self_"]
    assert gab == {"gab": True}
    plain.pop("defaults")
    composed = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(type(cfg)), plain, gab))
    composed.base, composed.drop_path_rate = cfg.base, cfg.drop_path_rate
    assert composed == cfg


@pytest.mark.parametrize("options", [{}, {"features_only": True}])
def test_create_model_places_and_casts(options):
    model = timm.create_model("deit_tiny_patch4_life_32", depth=4, device="meta", dtype=torch.bfloat16, **options)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.bfloat16)}

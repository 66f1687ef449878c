from dataclasses import replace

import huggingface_hub
import pytest
import timm
import torch
from omegaconf import OmegaConf

from gab.config import GaussianConfig, ModelConfig, SwinConfig, T2TConfig, TimmConfig, ViTAEConfig, ViTConfig
from gab.errors import UserError
from gab.models import build, gaussians, variant
from gab.models.vit import VisionTransformer
from gab.models.vit_names import RELPOS as GAB_RELPOS
from gab.models.weights import published

OURS = "vit_relpos_small_patch16_gab_224"


def make(config, size=32):
    return build(config, image_size=size, num_classes=5, seed=0)


def test_builds_every_kind(relpos, swin):
    for config in (relpos(gab=True), swin(), TimmConfig(name="vit_tiny_patch16_224")):
        model = make(config, 64)
        assert model(torch.randn(1, 3, 64, 64)).shape == (1, 5)


def test_timm_networks_start_from_the_seed():
    config = TimmConfig(name="resnet10t", drop_path_rate=0.0)
    torch.manual_seed(5)
    expected_draw = torch.rand(())
    torch.manual_seed(5)
    first = make(config)
    assert torch.rand(()) == expected_draw  # the global generator is left as it was
    again, other = make(config), build(config, image_size=32, num_classes=5, seed=1)
    assert torch.equal(first.state_dict()["fc.weight"], again.state_dict()["fc.weight"])
    assert not torch.equal(first.state_dict()["fc.weight"], other.state_dict()["fc.weight"])


def test_our_networks_start_alike_by_both_names(relpos):
    shape = {"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3}
    by_timm = make(TimmConfig(name=OURS, drop_path_rate=0.0, kwargs=shape)).state_dict()
    by_config = make(relpos(gab=True)).state_dict()
    assert all(torch.equal(by_timm[name], by_config[name]) for name in by_config)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (ViTConfig(base="vit_s16"), "vit_s16"),
        (ViTConfig(base="vit_s16", gab=True), "vit_s16_gab"),
        (ViTConfig(base="vit_s16", gab=True, gaussian=GaussianConfig(per_head=True)), "vit_s16_gab_per_head"),
        (ViTConfig(base="vit_s16", gaussian=GaussianConfig(per_head=True)), "vit_s16"),
        (SwinConfig(base="swin_s", gab=True), "swin_s_gab"),
        (SwinConfig(base="swin_s", rel_pos="none", position="learnable"), "swin_s_norpe_learnable"),
        (SwinConfig(base="swin_s", position="learnable", join="lape"), "swin_s_lape"),
        (SwinConfig(base="swin_s", position="learnable", join="lape", join_norm="gain"), "swin_s_lape_gain"),
        (ViTConfig(base="deit_t16", join="lape", join_norm="norm_channel_gain"), "deit_t16_lape_norm_channel_gain"),
        (ViTConfig(base="deit_s16", position="none"), "deit_s16_nope"),
        (ViTConfig(base="deit_s16", position="sincos_1d", join="lape", life=True), "deit_s16_lape_sincos_1d_life"),
        (ViTConfig(base="deit_s16", position="none", rel_pos="table"), "deit_s16_table"),
        (replace(GAB_RELPOS, gab=False, base="vit_s16", position="learnable", join="lape"), "vit_s16_lape_learnable"),
        (replace(GAB_RELPOS, gab=False, base="vit_s16", rel_pos="bias"), "vit_s16_bias"),
        (replace(GAB_RELPOS, gab=False, base="vit_s16", rel_pos="none", position="learnable"), "vit_s16_norpe"),
        (ViTAEConfig(base="vitae_t", class_token=True, position="sincos_1d"), "vitae_t_sincos_1d_class_token"),
        (replace(GAB_RELPOS, base="vit_s16", gaussian=GaussianConfig(frozen=True)), "vit_s16_gab_frozen"),
        (replace(GAB_RELPOS, base="vit_s16", gab=False, rel_pos_start="gaussian"), "vit_s16_rel_gaussian"),
        (ViTConfig(base="deit", life=True, qkv_norm=True), "deit_life_qkv_norm"),
        (ViTConfig(base="deit", life=True, aux_key="per_scale"), "deit_life_per_scale"),
        (replace(GAB_RELPOS, gab=False, base="vit", life=True, aux_key="per_scale"), "vit_life"),
        (TimmConfig(name="resnet18"), "resnet18"),
    ],
)
def test_variant(config, name):
    assert variant(config) == name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 5}, r"model\.embed_dim=24 is not divisible by model\.num_heads=5"),
        ({"patch_size": 7}, r"32 x 32 do not divide into patches of model\.patch_size=7"),
        ({"patch_size": 64}, "do not divide into patches"),
        ({"depth": 0}, r"model\.depth is 0; it must be at least 1"),
        ({"drop_path_rate": 1.0}, r"model\.drop_path_rate is 1\.0; a rate is at least 0 and below 1"),
        ({"pool": "max"}, r"model\.pool=max is unknown: choose one of token, avg"),
        ({"pool": "token"}, r"model\.class_token=true or model\.pool=avg"),
        ({"rel_pos": "mlps"}, r"model\.rel_pos=mlps is unknown: choose one of none, mlp, table, table_norm, bias"),
        ({"position": "2d"}, r"model\.position=2d is unknown"),
        ({"init": "zeros"}, r"model\.init=zeros is unknown"),
    ],
)
def test_impossible_networks_are_refused_in_a_sentence(relpos, changes, message):
    with pytest.raises(UserError, match=message):
        make(relpos(**changes))


def test_a_token_module_without_width_is_refused():
    with pytest.raises(UserError, match=r"model\.token_width is 0; it must be at least 1"):
        make(T2TConfig(base="t2t", token_width=0))


def test_unknown_timm_name_gets_the_closest():
    with pytest.raises(UserError, match=r"no model named 'vit_relpos_smal_patch16_224'; did you mean vit_relpos_small"):
        make(TimmConfig(name="vit_relpos_smal_patch16_224"))
    with pytest.raises(UserError, match="lists all"):
        make(TimmConfig(name="#"))
    with pytest.raises(UserError, match="Invalid pretrained tag"):
        make(TimmConfig(name="resnet18.nobody"))


@pytest.mark.parametrize(("rate", "expected"), [(None, 0.1), (0.0, 0.0), (0.3, 0.3)])
def test_drop_path_of_a_timm_network(rate, expected):
    """Null leaves the network's own; zero is zero."""
    kwargs = {"embed_dim": 12, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4}
    model = make(TimmConfig(name="swin_tiny_patch4_window7_224", drop_path_rate=rate, kwargs=kwargs), 32)
    last = model.layers[-1].blocks[-1].drop_path1
    assert getattr(last, "drop_prob", 0.0) == pytest.approx(expected)


def test_options_that_a_timm_network_lacks():
    with pytest.raises(UserError, match=r"could not build resnet10t .*wheels"):
        make(TimmConfig(name="resnet10t", kwargs={"wheels": 4}))


def test_weights_that_cannot_be_downloaded(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    message = r"the weights of test_resnet could not be downloaded \(.*docs/clusters\.md says how to bring them"
    with pytest.raises(UserError, match=message):
        make(TimmConfig(name="test_resnet", pretrained=True))
    with pytest.raises(UserError, match=message):
        published("test_resnet")


def test_unknown_network():
    with pytest.raises(UserError, match=r"model\.network=mixer is unknown: choose one of vit, .*swin.*, timm"):
        make(ModelConfig(network="mixer", base="mixer"))


@pytest.mark.parametrize(
    "name", ["vit_t16", "vit_s16", "vit_m16", "vit_b16", "vit_l16", "deit_t16", "deit_s16", "deit_b16"]
)
def test_config_files(name, pytestconfig):
    values = OmegaConf.load(pytestconfig.rootpath / "conf" / "model" / f"{name}.yaml")
    values.pop("defaults")
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ViTConfig), values))
    assert config.base == name
    with torch.device("meta"):
        model = VisionTransformer(replace(config, gab=True), seed=0)
    assert len(gaussians(model)) == config.depth
    letter = {"t": "tiny", "s": "small", "m": "medium", "b": "base", "l": "large"}[name.split("_")[1][0]]
    family = f"vit_relpos_{letter}_patch16_224" if name.startswith("vit") else f"deit_{letter}_patch16_224"
    if timm.is_model(family):
        expected = timm.create_model(family, device="meta").state_dict()
        own = {k: v for k, v in model.state_dict().items() if "gaussian" not in k}
        assert {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in expected.items()}

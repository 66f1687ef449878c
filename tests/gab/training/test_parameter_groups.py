import pytest
import timm
from timm.optim import param_groups_layer_decay
from torch import nn

from gab.config import OptimConfig, SwinConfig, ViTConfig
from gab.errors import UserError
from gab.models import build
from gab.training.parameter_groups import parameter_groups

CONFIGS = {
    "vit": ViTConfig(base="v", patch_size=8, embed_dim=24, depth=2, num_heads=3, rel_pos="mlp", gab=True,
                     layer_scale=0.1),
    "swin": SwinConfig(base="s", embed_dim=12, depths=[1, 1], num_heads=[2, 4], window_size=4, gab=True),
}  # fmt: skip


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return build(CONFIGS[request.param], image_size=32, num_classes=4, seed=0)


def names(model: nn.Module, group: dict) -> set[str]:
    own = {id(p) for p in group["params"]}
    return {name for name, p in model.named_parameters() if id(p) in own}


def test_every_parameter_is_in_one_group(model: nn.Module) -> None:
    grouped = [id(p) for group in parameter_groups(model, OptimConfig()) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())


def test_only_matrices_decay(model: nn.Module) -> None:
    groups = {group["name"]: group for group in parameter_groups(model, OptimConfig(weight_decay=0.05))}
    assert {name: group["weight_decay"] for name, group in groups.items()} == {
        "decayed": 0.05, "exempt": 0.0, "gaussian": 0.0
    }  # fmt: skip
    decayed, exempt = names(model, groups["decayed"]), names(model, groups["exempt"])
    assert {"patch_embed.proj.weight"} < decayed
    assert all(name.endswith("weight") for name in decayed)
    undecayed = ("norm1.weight", "norm.weight", ".bias", "pos_embed", "cls_token", "gamma", "bias_table")
    assert not [name for name in decayed if name.endswith(undecayed)]
    assert [name for name in exempt if name.endswith("norm1.weight")]
    assert {"pos_embed", "cls_token"} & set(dict(model.named_parameters())) <= exempt
    gaussian = names(model, groups["gaussian"])
    assert gaussian == {n for n, _ in model.named_parameters() if n.endswith(("gaussian.amplitude", "gaussian.sigma"))}
    assert len(gaussian) == 4


def test_rate_of_the_gaussians(model: nn.Module) -> None:
    groups = parameter_groups(model, OptimConfig(gaussian_lr_scale=10.0))
    assert {group["name"]: group["lr_scale"] for group in groups} == {"decayed": 1.0, "exempt": 1.0, "gaussian": 10.0}


def test_frozen_parameters_are_left_out(model: nn.Module) -> None:
    model.requires_grad_(False)
    model.get_classifier().requires_grad_(True)
    grouped = [p for group in parameter_groups(model, OptimConfig()) for p in group["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in model.get_classifier().parameters()}


def test_the_groups_of_the_released_code() -> None:
    """There a distillation token and an embedding per layer decay; the Gaussian's pair, which it lacks, does not."""
    config = ViTConfig(base="v", patch_size=8, embed_dim=24, depth=2, num_heads=3, join="unshared", gab=True,
                       distillation_token=True)  # fmt: skip
    model = build(config, image_size=32, num_classes=4, seed=0)
    ours, released = (
        next(names(model, g) for g in parameter_groups(model, OptimConfig(decay=decay)) if g["name"] == "decayed")
        for decay in ("ours", "released")
    )
    assert released - ours == {"pos_embed", "dist_token"}
    assert ours <= released


def test_the_released_groups_of_a_foreign_network() -> None:
    foreign = timm.create_model("resnet10t", num_classes=4)
    with pytest.raises(UserError, match=r"optim\.decay=released is for this project's networks"):
        parameter_groups(foreign, OptimConfig(decay="released"))


def test_all_but_the_gaussian_decays() -> None:
    """As in the GAB authors' fine-tuning, which selects A and sigma by name."""
    model = build(CONFIGS["vit"], image_size=32, num_classes=4, seed=0)
    groups = parameter_groups(model, OptimConfig(decay="all", weight_decay=5e-4))
    assert {group["name"]: group["weight_decay"] for group in groups} == {"decayed": 5e-4, "gaussian": 0.0}
    assert {"blocks.0.norm1.weight", "blocks.0.attn.qkv.bias", "cls_token"} < names(model, groups[0])


@pytest.mark.parametrize("decay", [0.5, 0.9999])
def test_rates_fall_by_timms_layers(decay: float, model: nn.Module) -> None:
    groups = parameter_groups(model, OptimConfig(layer_decay=decay, gaussian_lr_scale=10.0))
    ours = {name: group["lr_scale"] for group in groups for name in names(model, group)}
    theirs = {
        name: group["lr_scale"]
        for group in param_groups_layer_decay(model, layer_decay=decay)
        for name in names(model, group)
    }
    assert ours == {name: scale * (10 if ".gaussian." in name else 1) for name, scale in theirs.items()}
    last = max(scale for name, scale in ours.items() if ".gaussian." not in name)
    assert {scale for name, scale in ours.items() if name.startswith("head.")} == {last} == {1.0}
    assert ours["patch_embed.proj.weight"] == min(ours.values()) < decay
    assert len({group["name"] for group in groups}) == len(groups)
    assert {group["weight_decay"] for group in groups if group["name"].startswith("gaussian")} == {0.0}
    decays = {name: group["weight_decay"] for group in groups for name in names(model, group)}
    flat = {
        name: group["weight_decay"] for group in parameter_groups(model, OptimConfig()) for name in names(model, group)
    }
    assert decays == flat

"""A second token with a head of its own, as timm's distilled DeiT has it."""

import pytest
import timm
import torch

import gab  # noqa: F401  (registers the models)
from gab.config import ViTConfig
from gab.errors import UserError
from gab.models.vit import VisionTransformer

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
TINY = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}


@pytest.fixture
def pair():
    """Ours and timm's, with the same weights."""
    theirs = timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, num_classes=5, **TINY)
    ours = VisionTransformer(
        ViTConfig(base="d", distillation_token=True, drop_path_rate=0.0, **TINY), 32, num_classes=5
    )
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("distilled_training", [False, True])
def test_outputs_and_gradients_are_timms(pair, distilled_training):
    for model in pair:
        model.set_distilled_training(distilled_training)
        model.train()
        logits = model(IMAGES)
        loss = logits[0].square().sum() + 2 * logits[1].square().sum() if distilled_training else logits.square().sum()
        loss.backward()
    ours, theirs = ({n: p.grad for n, p in model.named_parameters()} for model in pair)
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in ours)  # none is None
    outputs = [model.eval()(IMAGES) for model in pair]
    assert torch.allclose(*outputs, atol=1e-5)


def test_two_heads_in_training_only_when_asked_for(pair):
    model = pair[0].train()
    assert model(IMAGES).shape == (2, 5)
    model.set_distilled_training(True)
    first, second = model(IMAGES)
    assert torch.equal((first + second) / 2, model.eval()(IMAGES))


def test_features_and_heads(pair):
    model = pair[0].eval()
    features = model.forward_head(model.forward_features(IMAGES), pre_logits=True)
    assert features.shape == (2, 2, 24)
    assert [type(head).__name__ for head in model.get_classifier()] == ["Linear", "Linear"]
    model.reset_classifier(7)
    assert [head.out_features for head in model.get_classifier()] == [7, 7]
    assert model(IMAGES).shape == (2, 7)
    model.reset_classifier(0)
    assert model(IMAGES).shape == (2, 24)


def test_order_of_the_tokens(pair):
    model = pair[0]
    with torch.no_grad():
        model.cls_token.fill_(1.0)
        model.dist_token.fill_(2.0)
    assert model.num_prefix_tokens == 2
    assert model.embed(IMAGES)[0, :2].tolist() == [[1.0] * 24, [2.0] * 24]


def test_timms_weights(pair, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(pair[1].state_dict(), path)
    overlay = {"file": str(path)}
    ours = timm.create_model(
        "deit_tiny_distilled_patch16_lape_224", pretrained=True, join="add", img_size=32, num_classes=7,
        pretrained_cfg_overlay={**overlay, "num_classes": 5, "input_size": (3, 32, 32)}, **TINY,
    )  # fmt: skip
    weights = ours.state_dict()
    kept = {n: w for n, w in pair[1].state_dict().items() if not n.startswith("head")}
    assert all(torch.equal(weights[name], kept[name]) for name in kept)


@pytest.mark.parametrize(
    ("size", "add", "lape"),
    [("tiny", 5_910_800, 5_915_408), ("small", 22_436_432, 22_445_648), ("base", 87_338_192, 87_356_624)],
)
def test_counts(size, add, lape):
    for join, expected in (("add", add), ("lape", lape)):
        model = timm.create_model(f"deit_{size}_distilled_patch16_lape_224", device="meta", join=join)
        assert sum(p.numel() for p in model.parameters()) == expected


@pytest.mark.parametrize("pool", ["avg", ""])
def test_without_its_pooling_there_is_one_head(pool):
    cfg = ViTConfig(base="d", distillation_token=True, **TINY)
    model = VisionTransformer(cfg, 32, num_classes=3, global_pool=pool, seed=0)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    model.reset_classifier(3, "token")
    assert len(model.get_classifier()) == 2


@pytest.mark.parametrize("changes", [{"class_token": False, "pool": "avg"}, {"pool": "avg"}])
def test_it_needs_a_class_token_and_its_pooling(changes):
    with pytest.raises(UserError, match=r"model\.class_token=true and model\.pool=token"):
        VisionTransformer(ViTConfig(base="d", distillation_token=True, **{**TINY, **changes}), 32)


def test_a_relative_table_has_no_row_for_it():
    with pytest.raises(UserError, match=r"none for a distillation token: set model\.rel_pos=mlp"):
        VisionTransformer(ViTConfig(base="d", distillation_token=True, rel_pos="bias", **TINY), 32)


def test_one_without_it_has_no_distilled_training():
    with pytest.raises(UserError, match="distillation_token=True"):
        VisionTransformer(ViTConfig(base="d", **TINY), 32).set_distilled_training()

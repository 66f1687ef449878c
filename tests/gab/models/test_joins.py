"""How positions join the tokens: every join against the formula, written out for one network."""

from dataclasses import replace

import pytest
import torch
from timm.layers import resample_abs_pos_embed
from timm.models import group_parameters
from torch import nn

from gab.config import ViTConfig
from gab.errors import UserError
from gab.models.joins import JOINS, Add, Placement, Shared, Unshared
from gab.models.lape import LaPE, LaPESharing
from gab.models.vit import VisionTransformer

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def make(deit):
    """`make(join, **changes)`: a network whose norms and embeddings all matter."""

    def build(join: str, **changes) -> VisionTransformer:
        model = VisionTransformer(deit(join=join, depth=3, **changes), 32, num_classes=5, seed=0)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn(parameter.shape))
        return model.eval()

    return build


def by_hand(model: VisionTransformer, join: str) -> torch.Tensor:
    """The forward pass of "LaPE" (ICCV 2023), its Table 7's other joins, and the arXiv version."""
    x = model.embed(IMAGES)
    start = model.pos_embed
    w = start
    for number, block in enumerate(model.blocks):
        added = None
        if (join == "add" and number == 0) or join == "shared":
            x = x + start
        elif join == "unshared":
            x = x + start[number]
        elif join.startswith("lape"):
            norm = model.join.norms[number]
            w = norm(w if join == "lape" else start)
            added = w
        normed = block.norm1(x)
        x = x + block.attn(normed if added is None else normed + added)
        x = x + block.mlp(block.norm2(x))
    return model.head(model.norm(x)[:, 0])


@pytest.mark.parametrize("join", JOINS)
def test_every_join_is_its_formula(make, join):
    model = make(join)
    assert torch.allclose(model(IMAGES), by_hand(model, join), atol=1e-6)
    for other in {"add": ["shared"], "shared": ["add"], "lape": ["lape_sharing", "add"]}.get(join, []):
        assert (model(IMAGES) - by_hand(model, other)).abs().max() > 1e-3


def test_the_chain_at_its_start():
    """Test vector of the methods sheet: [1, 2, 3, 4], twice."""
    lape = LaPE(4, depth=2, eps=1e-6)
    first, second = (p.attention for p in lape(torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])))
    assert torch.allclose(first.flatten(), torch.tensor([-1.3416403, -0.4472136, 0.4472136, 1.3416403]), atol=2e-7)
    assert torch.allclose(first, second, atol=2e-7)


def test_the_embedding_stays_out_of_the_residual_stream():
    position = torch.randn(1, 3, 4)
    for join in (LaPE, LaPESharing):
        assert all(p.stream is None for p in join(4, 2, 1e-6)(position))
    assert Add(4, 3, 1e-6)(position) == [Placement(stream=position), Placement(), Placement()]
    assert Shared(4, 2, 1e-6)(position) == [Placement(stream=position)] * 2
    assert [p.stream.shape for p in Unshared(4, 2, 1e-6)(torch.randn(2, 3, 4))] == [(1, 3, 4)] * 2


COUNTS = {
    ("tiny", "add"): 5_717_416,
    ("tiny", "shared"): 5_717_416,
    ("tiny", "lape"): 5_722_024,
    ("tiny", "lape_sharing"): 5_722_024,
    ("tiny", "unshared"): 6_133_480,
    ("small", "lape"): 22_059_880,
    ("small", "unshared"): 22_882_792,
    ("base", "lape"): 86_586_088,
    ("base", "unshared"): 88_231_912,
}
SIZES = {
    "tiny": {"embed_dim": 192, "num_heads": 3},
    "small": {"embed_dim": 384, "num_heads": 6},
    "base": {"embed_dim": 768, "num_heads": 12},
}


def count(trainable: bool = False, **options) -> int:
    with torch.device("meta"):
        model = VisionTransformer(ViTConfig(base="deit", **options), seed=0)
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


@pytest.mark.parametrize(("size", "join"), COUNTS)
def test_counts(size, join):
    assert count(**SIZES[size], join=join) == COUNTS[size, join]


@pytest.mark.parametrize("position", ["sincos_1d", "sincos_2d"])
def test_counts_of_sinusoids(position):
    tiny = SIZES["tiny"]
    assert count(**tiny, position=position) == 5_717_416
    assert count(**tiny, position=position, trainable=True) == 5_679_592
    assert count(**tiny, position=position, join="lape") == 5_722_024
    assert count(**tiny, position=position, join="lape", trainable=True) == 5_684_200


def test_counts_of_the_table():
    """LaPE's released `relative`, which is a part of the bias socket here."""
    assert count(**SIZES["tiny"], position="none", rel_pos="table") == 5_705_836
    assert count(**SIZES["tiny"], position="none", rel_pos="table_norm") == 5_710_540


def test_start(make, deit):
    model = VisionTransformer(deit(join="unshared", embed_dim=192, depth=3), 32, seed=0)
    assert model.pos_embed.shape == (3, 17, 192)
    assert [layer.std().item() for layer in model.pos_embed] == pytest.approx([0.02] * 3, rel=0.1)
    assert not torch.equal(model.pos_embed[0], model.pos_embed[1])
    lape = VisionTransformer(deit(join="lape"), 32, seed=0)
    assert all(bool(norm.weight.eq(1).all()) and not norm.bias.any() for norm in lape.join.norms)
    assert all(norm.eps == 1e-6 for norm in lape.join.norms)


def test_arms_share_their_start(deit):
    """Everything but the norms of the position is the same tensor in both."""
    add, lape = (VisionTransformer(deit(join=join), 32, seed=0).state_dict() for join in ("add", "lape"))
    assert all(torch.equal(add[name], lape[name]) for name in add)
    assert {name.partition(".norms")[0] for name in lape.keys() - add.keys()} == {"join"}


def test_weight_decay(make):
    lape, unshared = make("lape"), make("unshared")
    assert lape.no_weight_decay() == {"pos_embed", "cls_token"} == lape.no_weight_decay(released=True)
    assert unshared.no_weight_decay() == {"pos_embed", "cls_token"}
    assert unshared.no_weight_decay(released=True) == {"cls_token"}
    distilled = make("lape", distillation_token=True)
    assert distilled.no_weight_decay() == {"pos_embed", "cls_token", "dist_token"}
    assert distilled.no_weight_decay(released=True) == {"pos_embed", "cls_token"}


def test_layer_decay_groups_the_norms_with_their_blocks(make):
    groups = group_parameters(make("lape"), make("lape").group_matcher(), reverse=True)
    for number in range(3):
        assert groups[f"join.norms.{number}.weight"] == groups[f"blocks.{number}.norm1.weight"]
    assert groups["pos_embed"] == groups["cls_token"] == groups["patch_embed.proj.weight"] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"position": "none", "join": "lape"}, r"model\.join=lape needs a position.*model\.position=learnable"),
        ({"position": "none", "join": "shared"}, r"model\.join=shared needs a position"),
        ({"position": "sincos_1d", "join": "unshared"}, r"for every layer.*model\.join=shared"),
        ({"join": "each"}, r"model\.join=each is unknown: choose one of add, shared, unshared, lape, lape_sharing"),
    ],
)
def test_what_does_not_go_together(deit, changes, message):
    with pytest.raises(UserError, match=message):
        VisionTransformer(deit(**changes), 32)


@pytest.mark.parametrize("join", JOINS)
def test_another_image_size(make, join):
    model = make(join)
    old = model.pos_embed.detach().clone()
    model.set_input_size(48)
    assert model(torch.randn(1, 3, 48, 48)).shape == (1, 5)
    expected = torch.cat([resample_abs_pos_embed(layer[None], [6, 6], [4, 4], 1) for layer in old])
    assert torch.equal(model.pos_embed, expected)


@pytest.mark.parametrize("join", JOINS)
def test_fewer_layers(make, join):
    model = make(join)
    expected = model.forward_intermediates(IMAGES, [1], intermediates_only=True, output_fmt="NLC")[0]
    model.prune_intermediate_layers([1], prune_norm=True)
    assert torch.equal(model(IMAGES)[:, 1:], expected)
    model.train()(IMAGES).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_dropout_leaves_the_embedding_alone(make):
    """Placements are the same in training, whatever the rates."""
    model = make("lape", proj_drop_rate=0.5, drop_rate=0.5, attn_drop_rate=0.5, drop_path_rate=0.5).train()
    assert all(torch.equal(a.attention, b.attention) for a, b in zip(model.placements(), model.placements()))


@pytest.mark.parametrize("join", JOINS)
def test_checkpointing_and_gradients(make, join):
    model = make(join)
    grads = []
    for enable in (False, True):
        model.zero_grad()
        model.set_grad_checkpointing(enable)
        model(IMAGES).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads))


def test_eps_of_the_network_reaches_the_norms(deit):
    class Coarse(VisionTransformer):
        eps = 1e-5

    model = Coarse(replace(deit(join="lape")), 32)
    norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm)]
    assert {norm.eps for norm in norms} == {1e-5}
    assert len(norms) == 3 * 2 + 1

"""Positions in a Swin transformer: every join against its formula, written out window by window."""

import copy
import re
from dataclasses import replace

import pytest
import timm
import torch
from omegaconf import OmegaConf
from timm.models import group_parameters
from torch import nn

from gab.config import GaussianConfig, SwinConfig
from gab.errors import UserError
from gab.models import variant
from gab.models.fold import fold
from gab.models.joins import JOINS
from gab.models.swin import SwinTransformer
from gab.models.swin_names import SMALL_LAPE, TINY_LAPE

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
NAMES = {"swin_t": TINY_LAPE, "swin_s": SMALL_LAPE}


@pytest.fixture
def make(swin):
    """`make(join, size, **changes)`: a network whose norms, embeddings and tables all matter."""

    def build(join: str = "lape", size=64, **changes) -> SwinTransformer:
        changes = {"position": "learnable", "gab": False, **changes}
        model = SwinTransformer(swin(join=join, **changes), size, num_classes=5, seed=0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
        return model.eval()

    return build


def attention(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Shifted-window attention on maps (B, h, w, C) whose sides windows divide, window by window."""
    (height, width), (down, right) = block.window_size, block.shift_size
    x = x.roll((-down, -right), (1, 2))
    out = torch.empty_like(x)
    number = 0
    for i in range(0, x.shape[1], height):
        for j in range(0, x.shape[2], width):
            window = x[:, i : i + height, j : j + width].flatten(1, 2)
            mask = None if block.attn_mask is None else block.attn_mask[number : number + 1]
            out[:, i : i + height, j : j + width] = block.attn(window, mask).unflatten(1, (height, width))
            number += 1
    return out.roll((down, right), (1, 2))


def by_hand(model: SwinTransformer, join: str) -> torch.Tensor:
    x = model.patch_embed(IMAGES)
    for stage in model.layers:
        x = stage.downsample(x)
        start = w = stage.pos_embed.unflatten(1, x.shape[1:3])
        for number, block in enumerate(stage.blocks):
            added = None
            if (join == "add" and number == 0) or join == "shared":
                x = x + start
            elif join == "unshared":
                x = x + start[number]
            elif join.startswith("lape"):
                norm = stage.join.norms[number]
                w = norm(w if join == "lape" else start)
                added = w
            normed = block.norm1(x)
            x = x + attention(block, normed if added is None else normed + added)
            x = x + block.mlp(block.norm2(x))
    return model.head.fc(model.norm(x).mean((1, 2)))


@pytest.mark.parametrize("join", JOINS)
def test_every_join_is_its_formula(make, join):
    model = make(join)
    assert [any(block.shift_size) for stage in model.layers for block in stage.blocks] == [False, True, False, True]
    assert torch.allclose(model(IMAGES), by_hand(model, join), atol=2e-6)


def test_the_joins_differ(make):
    logits = {}
    for join in set(JOINS) - {"unshared"}:
        torch.manual_seed(0)
        logits[join] = make(join)(IMAGES)
    pairs = [(a, b) for a in logits for b in logits if a < b]
    assert all((logits[a] - logits[b]).abs().max() > 1e-3 for a, b in pairs)


@pytest.mark.parametrize(
    ("changes", "tiny", "small"),
    [
        ({"position": "none", "join": "add"}, 28_288_354, 49_606_258),
        ({"join": "add"}, 28_852_834, 50_170_738),  # 564,480 more: one embedding per stage
        ({}, 28_861_666, 50_188_786),  # two vectors per block more
        ({"rel_pos": "none"}, 28_838_344, 50_141_128),  # no tables
    ],
    ids=["table", "table and learnable", "table and LaPE", "LaPE alone"],
)
def test_parameter_counts(changes, tiny, small):
    for name, count in (("swin_tiny_patch4_window7_lape_224", tiny), ("swin_small_patch4_window7_lape_224", small)):
        with torch.device("meta"):
            model = timm.create_model(name, seed=0, **changes)
        assert sum(p.numel() for p in model.parameters()) == count


def test_start(swin):
    model = SwinTransformer(swin(position="learnable", join="lape", embed_dim=48), 64, seed=0)
    for stage in model.layers:
        assert stage.pos_embed.std().item() == pytest.approx(0.02, rel=0.03)
        assert all(norm.weight.eq(1).all() and not norm.bias.any() and norm.eps == 1e-5 for norm in stage.join.norms)
    plain = SwinTransformer(swin(embed_dim=48), 64, seed=0).state_dict()
    assert all(torch.equal(plain[name], model.state_dict()[name]) for name in plain)


def test_without_a_table_is_a_table_of_zeros(make):
    """The second block of a stage has a mask but no bias, the first neither."""
    model, tables = make(rel_pos="none"), make()
    assert not [name for name in model.state_dict() if name.endswith("table")]
    with torch.no_grad():
        for name, parameter in tables.named_parameters():
            parameter.zero_() if name.endswith("table") else parameter.copy_(model.get_parameter(name))
    assert torch.allclose(model(IMAGES), tables(IMAGES), atol=1e-6)
    for attn in (module for module in model.modules() if hasattr(module, "fused_attn")):
        attn.fused_attn = not attn.fused_attn
    assert torch.allclose(model(IMAGES), tables(IMAGES), atol=1e-5)


def test_a_gaussian_without_a_table(make):
    model = make(rel_pos="none", gab=True, gaussian=GaussianConfig(amplitude=4.0))
    expected = make(rel_pos="none")
    expected.load_state_dict(model.state_dict(), strict=False)
    assert (model(IMAGES) - expected(IMAGES)).abs().max() > 1e-3


@pytest.mark.parametrize("join", ["add", "unshared", "lape"])
@pytest.mark.parametrize("rel_pos", ["none", "bias"])
def test_gradients_with_and_without_checkpointing(make, join, rel_pos):
    grads = []
    model = make(join, rel_pos=rel_pos).train()
    for enable in (False, True):
        model.zero_grad()
        model.set_grad_checkpointing(enable)
        model(IMAGES).square().sum().backward()
        assert all(p.grad is not None for p in model.parameters())
        grads.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_decay_and_layers(make):
    model = make("lape")
    exempt = {f"layers.{i}.pos_embed" for i in range(2)}
    exempt |= {f"layers.{i}.blocks.{j}.attn.relative_position_bias_table" for i in range(2) for j in range(2)}
    assert model.no_weight_decay() == exempt
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    assert layers.keys() == dict(model.named_parameters()).keys()
    assert layers["layers.1.pos_embed"] == layers["layers.1.downsample.norm.weight"]
    for i in range(2):
        assert layers[f"layers.{i}.pos_embed"] == layers[f"layers.{i}.blocks.0.norm1.weight"] == 2 * i + 1
        for j in range(2):
            assert layers[f"layers.{i}.join.norms.{j}.bias"] == layers[f"layers.{i}.blocks.{j}.norm1.weight"]
    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert coarse["layers.1.join.norms.0.weight"] == coarse["layers.1.pos_embed"] == 2
    theirs = timm.models.SwinTransformer.group_matcher(model)
    plain = SwinTransformer(replace(model.cfg, position="none", join="add"), 64)
    assert group_parameters(plain, plain.group_matcher()) == group_parameters(plain, theirs)


@pytest.mark.parametrize(("size", "grids"), [((128, 64), [(32, 16), (16, 8)]), ((72, 72), [(18, 18), (9, 9)])])
def test_another_image_size(make, size, grids):
    """Windows of 4 do not divide maps of 18 and 9, which timm pads after the position is added."""
    model = make("unshared")
    with torch.no_grad():
        model.layers[0].pos_embed[1].fill_(0.25)
    model.set_input_size(size, window_size=4)
    assert [stage.pos_embed.shape[1] for stage in model.layers] == [h * w for h, w in grids]
    assert torch.allclose(model.layers[0].pos_embed[1], torch.tensor(0.25))
    assert model(torch.randn(1, 3, *size)).shape == (1, 5)


def test_another_window_without_a_table(make):
    model = make(rel_pos="none", gab=True)
    model.set_input_size(window_size=8)
    assert model.layers[0].blocks[0].attn.window_area == 64
    assert model.layers[0].blocks[0].attn.gaussian.grid == (8, 8)
    assert model(IMAGES).shape == (2, 5)


def test_folds(make):
    model = make("lape", gab=True)
    folded = fold(copy.deepcopy(model))
    assert torch.allclose(folded(IMAGES), model(IMAGES), atol=1e-6)
    assert not [name for name, _ in folded.named_parameters() if "join" in name or "pos_embed" in name]


def test_features_are_those_of_the_stages():
    shape = {"embed_dim": 12, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4, "img_size": 64}
    name = "swin_tiny_patch4_window7_lape_224"
    model = timm.create_model(name, features_only=True, out_indices=(0, 1), seed=0, **shape).eval()
    whole = timm.create_model(name, seed=0, **shape).eval()
    expected = whole.forward_intermediates(IMAGES, intermediates_only=True)
    for feature, intermediate in zip(model(IMAGES), expected, strict=True):
        assert torch.equal(feature.permute(0, 3, 1, 2), intermediate)
    whole.prune_intermediate_layers([0])
    assert [name for name, _ in whole.named_parameters() if name.startswith("layers.1")] == []


def test_own_checkpoint_at_another_size(tmp_path):
    shape = {"embed_dim": 12, "depths": (2, 2), "num_heads": (2, 4), "window_size": 7}
    name = "swin_tiny_patch4_window7_lape_224"
    start = timm.create_model(name, **shape)
    with torch.no_grad():
        start.layers[1].pos_embed.fill_(0.5)
    torch.save(start.state_dict(), tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth")}
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, img_size=(256, 128), **shape)
    assert model.layers[1].pos_embed.shape == (1, 32 * 16, 24)
    assert torch.allclose(model.layers[1].pos_embed, torch.tensor(0.5))
    assert torch.equal(model.layers[1].join.norms[1].weight, start.layers[1].join.norms[1].weight)


@pytest.mark.parametrize("switches", [{"gab": True}, {"gab": True, "rel_pos": "none"}])
def test_own_checkpoint_at_its_own_size(tmp_path, switches):
    """Which is no square here, nor are the positions and the last window."""
    shape = {"embed_dim": 12, "depths": (2, 2), "num_heads": (2, 4), "window_size": 8, "img_size": (64, 32), **switches}
    name = "swin_tiny_patch4_window7_lape_224"
    start = timm.create_model(name, **shape)
    with torch.no_grad():
        for parameter in start.parameters():
            parameter.add_(torch.rand(parameter.shape))
    torch.save(start.state_dict(), tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth")}
    again = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **shape).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in start.state_dict().items())


def test_compiles_without_graph_breaks(make):
    model = make("lape", rel_pos="none", depths=[2], num_heads=[2])
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(IMAGES), model(IMAGES), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rel_pos": "mlp"}, "model.rel_pos is 'mlp'; a Swin transformer takes one of none, bias"),
        ({"position": "sincos_2d"}, "model.position is 'sincos_2d'; a Swin transformer takes one of none, learnable"),
        ({"join": "lape"}, "model.join=lape needs a position embedding: set model.position=learnable"),
        ({"position": "learnable", "join": "sum"}, "model.join=sum is unknown: choose one of add, shared"),
    ],
)
def test_refusals(swin, changes, message):
    with pytest.raises(UserError, match=re.escape(message)):
        SwinTransformer(swin(**changes), 64)


@pytest.mark.parametrize("size", NAMES)
@pytest.mark.parametrize(
    ("switches", "changes"),
    [
        ("", {"position": "none", "join": "add"}),
        ("_lape", {}),
        ("_norpe_learnable", {"rel_pos": "none", "join": "add"}),
        ("_norpe_lape", {"rel_pos": "none"}),
    ],
)
def test_config_files_are_named_as_their_variants(size, switches, changes, pytestconfig):
    composed = compose(size + switches, pytestconfig.rootpath / "conf" / "model")
    assert composed == replace(NAMES[size], drop_path_rate=composed.drop_path_rate, **changes)
    assert composed.drop_path_rate == {"swin_t": 0.2, "swin_s": 0.3}[size]
    assert variant(composed) == size + switches
    assert variant(replace(composed, rel_pos="bias", join="add", position="learnable")) == f"{size}_learnable"


def compose(name, folder) -> SwinConfig:
    """The file `name` and those that it starts from, over the schema."""
    files = [OmegaConf.load(folder / f"{name}.yaml")]
    while (parent := files[0].pop("defaults")[0]) != "/swin_schema@_here_":
        files.insert(0, OmegaConf.load(folder / f"{parent}.yaml"))
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(SwinConfig), *files))

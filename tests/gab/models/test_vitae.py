"""ViTAE against the official output, counts and rules, and what the ViT's sockets do in it."""

import copy
import re
from dataclasses import replace

import pytest
import timm
import torch
from timm.models import group_parameters
from torch import nn

from gab.config import OptimConfig, ViTAEConfig
from gab.errors import UserError
from gab.models.stochastic import attach_keys
from gab.models.vitae import OFFICIAL, VitaeTransformer
from gab.training.flops import macs
from gab.training.parameter_groups import parameter_groups
from tests import golden_noise

TINY = ViTAEConfig(
    base="vitae",
    embed_dim=24,
    depth=2,
    num_heads=2,
    prm_widths=[6, 4],
    token_widths=[8, 6],
    groups=6,
    drop_path_rate=0.0,
)
SIZES = {  # parameters, trainable ones, keys, and 10^9 MACs at 224 and 384 px
    "vitae_tiny": (4_886_888, 4_882_792, 264, 1.757, 5.948),
    "vitae_6m": (6_614_120, 6_610_024, 348, 2.152, 7.443),
    "vitae_13m": (10_834_728, 10_830_632, 376, 3.036, 10.463),
    "vitae_small": (24_032_136, 24_009_096, 460, 6.180, 20.515),
}
IMAGES = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))


def tiny(img_size=(32, 48), **changes) -> VitaeTransformer:
    return VitaeTransformer(replace(TINY, **changes), img_size, num_classes=5, seed=0).eval()


@pytest.mark.parametrize("name", SIZES)
def test_counts(name):
    with torch.device("meta"):
        model = timm.create_model(name, seed=0)
    parameters, trainable, keys, _, _ = SIZES[name]
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trainable
    assert len(model.state_dict()) == keys


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_macs(name):
    for size, expected in zip((224, 384), SIZES[name][3:], strict=True):
        assert round(macs(timm.create_model(name, img_size=size), size) / 1e9, 3) == expected


def test_parts_of_tiny():
    with torch.device("meta"):
        model = timm.create_model("vitae_tiny", seed=0)

    def count(part):
        return sum(p.numel() for p in part.parameters())

    stem, block = model.patch_embed, model.blocks[0]
    parts = [stem.cells[0], stem.cells[1], stem.prm, block, block.attn, block.mlp, block.pcm, model.head]
    assert [count(p) for p in parts] == [178_176, 273_792, 147_712, 575_744, 263_168, 262_912, 48_640, 257_000]


# -- the official network ---------------------------------------------------------------------------------------------


def renamed(key: str) -> str:
    for pattern, replacement in OFFICIAL:
        key = re.sub(pattern, replacement, key)
    return key


@pytest.fixture(scope="module")
def official():
    golden = golden_noise.load("vitae_ViTAE_basic_Tiny")
    model = timm.create_model("vitae_tiny").eval()
    weights = {renamed(key): value for key, value in golden_noise.fill(golden["state_dict_keys"]).items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(key.endswith("num_batches_tracked") for key in missing)
    return model, golden_noise.images(golden["image_size"]), torch.tensor(golden["logits"])


def test_official_output(official):
    model, images, logits = official
    with torch.no_grad():
        assert (model(images) - logits).abs().max() < 2e-5


@pytest.mark.parametrize("swapped", ["blocks", "pcm", "w"])
def test_official_output_can_be_missed(official, swapped):
    model, images, logits = official
    model = copy.deepcopy(model)
    if swapped == "blocks":
        model.blocks[0], model.blocks[1] = model.blocks[1], model.blocks[0]
    elif swapped == "pcm":
        model.blocks[0].pcm, model.blocks[1].pcm = model.blocks[1].pcm, model.blocks[0].pcm
    else:
        first, second = (cell.attn for cell in model.patch_embed.cells)
        first.w, second.w = second.w, first.w
    with torch.no_grad():
        assert (model(images) - logits).abs().max() > 1e-3


# -- shapes -----------------------------------------------------------------------------------------------------------


def test_shapes_of_the_reduction():
    stem = tiny(224).patch_embed
    x = torch.zeros(1, 3, 224, 224)
    first, second = stem.cells[0](x), stem.cells(x)
    assert first.shape == (1, 8, 56, 56)
    assert second.shape == (1, 6, 28, 28)
    assert stem(x).shape == (1, 196, 24)
    convs = [[c.padding[0] for c in prm.convs] for prm in (stem.cells[0].prm, stem.cells[1].prm, stem.prm)]
    assert convs == [[2, 5, 8, 11], [1, 2, 3], [1, 2]]


@pytest.mark.parametrize("options", [{}, {"class_token": True, "position": "sincos_1d", "pool": "token"}])
def test_set_input_size_is_a_network_of_that_size(options):
    model, other = tiny((32, 48), **options), tiny((64, 32), **options)
    with pytest.raises(UserError, match="Images of 32 x 48 for a network made for 64 x 32"):
        other(IMAGES)
    other.set_input_size((32, 48))
    assert torch.equal(model(IMAGES), other(IMAGES))
    with pytest.raises(UserError, match="do not reduce evenly by 16"):
        model.set_input_size((40, 48))


def test_rows_are_rows():
    """A change in one corner of the image reaches the token of that corner first."""
    model = tiny((32, 128))
    other = torch.zeros(1, 3, 32, 128)
    other[..., -4:, -4:] = 9
    cells = model.patch_embed
    change = (cells(other) - cells(torch.zeros_like(other))).abs().sum(dim=2)[0]
    assert change.argmax() == 15
    pcm = model.blocks[0].pcm
    tokens = torch.zeros(1, 16, 24)
    tokens[0, 7] = 1  # the last of the first row; only the last three columns are within reach
    reached = (pcm(tokens) - pcm(torch.zeros_like(tokens))).abs().sum(dim=2)[0].reshape(2, 8) > 0
    assert reached.any(dim=0).tolist() == [False] * 4 + [True] * 4


# -- the normal cell --------------------------------------------------------------------------------------------------


def test_a_class_token_skips_the_convolutions():
    model = tiny(class_token=True, pool="token")
    x = torch.randn(2, 7, 24)
    local = model.blocks[0].pcm(x)
    assert not local[:, 0].any()
    assert torch.equal(local[:, 1:], tiny().blocks[0].pcm(x[:, 1:]))


def test_normal_cell_against_its_formula():
    model = tiny(class_token=True, pool="token", position="learnable", join="lape")
    block, x = model.blocks[1], torch.randn(2, 7, 24)
    w = model.placements()[1].attention
    y = x + block.attn(block.norm1(x) + w)
    y = y + block.pcm(x)
    assert torch.allclose(block(x, w), y + block.mlp(block.norm2(y)), atol=1e-6)


def test_three_branches_drop_each_for_itself():
    model = tiny(drop_path_rate=0.5, depth=2).train()
    block = model.blocks[1]
    keys = attach_keys(model, 0, torch.device("cpu"))
    paths = [block.drop_path1, block.drop_path_pcm, block.drop_path2]

    def kept(step):
        keys.set(0, step, torch.arange(64))
        return [path(torch.ones(64, 1)).flatten() > 0 for path in paths]

    masks = kept(0)
    assert all(torch.equal(a, b) for a, b in zip(masks, kept(0), strict=True))
    assert not any(torch.equal(masks[i], masks[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert all(16 < mask.sum() < 48 for mask in masks)
    x = torch.randn(64, 6, 24)
    y = x + paths[0](block.attn(block.norm1(x)))
    y = y + paths[1](block.pcm(x))
    assert torch.allclose(block(x), y + paths[2](block.mlp(block.norm2(y))), atol=1e-6)


def test_two_training_forwards_of_a_step_are_the_same():
    model = tiny(drop_path_rate=0.5).train()
    keys = attach_keys(model, 0, torch.device("cpu"))
    out = []
    for sample in (0, 0, 7):
        keys.set(0, 0, torch.tensor([sample, sample + 1]))
        torch.manual_seed(0)  # as the trainer does, for the dropout in the reduction cells
        out.append(model(IMAGES))
    assert torch.equal(out[0], out[1])
    assert not torch.equal(out[0], out[2])


def test_gradient_checkpointing_changes_neither_gradients_nor_statistics():
    results = []
    for enable in (False, True):
        model = tiny().train()
        model.set_grad_checkpointing(enable)
        for seed in (0, 1):
            torch.manual_seed(seed)
            model(IMAGES).square().sum().backward()
        assert model.blocks[0].pcm[1].momentum == 0.1
        results.append([*(p.grad for p in model.parameters() if p.requires_grad), *model.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert {int(b) for name, b in model.named_buffers() if name.endswith("num_batches_tracked")} == {2}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"class_token": True, "pool": "token", "position": "sincos_1d"},
        {"gab": True, "rel_pos": "mlp", "position": "learnable", "join": "lape", "life": True, "class_token": True},
        {"position": "learnable", "join": "unshared", "layer_scale": 1e-3},
    ],
)
def test_every_trained_parameter_gets_a_gradient(options):
    model = tiny(**options).train()
    model(IMAGES).square().sum().backward()
    none = {name for name, p in model.named_parameters() if p.grad is None}
    assert none == {name for name, p in model.named_parameters() if not p.requires_grad}
    frozen = {"patch_embed.cells.0.attn.w", "patch_embed.cells.1.attn.w"}
    assert none == frozen | ({"pos_embed"} if options.get("position") == "sincos_1d" else set())


# -- start, decay, layers ---------------------------------------------------------------------------------------------


def test_start():
    model = VitaeTransformer(replace(ViTAEConfig(base="vitae"), depth=1), 64, seed=0)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            assert abs(module.weight.mean()) < 5 * 0.02 / module.weight.numel() ** 0.5, name
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.03), name
            assert not module.bias.any()
        elif isinstance(module, nn.Conv2d):
            bound = module.weight[0].numel() ** -0.5
            for value in (module.weight, module.bias):
                assert 0.9 * bound < value.abs().max() <= bound, name
            assert module.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05), name
        elif isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
            assert module.weight.eq(1).all()
            assert not module.bias.any()
    for cell in model.patch_embed.cells:
        assert torch.allclose(cell.attn.w @ cell.attn.w.T, 32 * torch.eye(32), atol=1e-4)


def test_epsilons():
    model = tiny()
    assert {m.eps for m in model.patch_embed.modules() if isinstance(m, nn.LayerNorm)} == {1e-5}
    assert {m.eps for m in model.blocks.modules() if isinstance(m, nn.LayerNorm)} == {1e-6}
    assert not any(isinstance(m, nn.LayerNorm) for m in (model.norm, model.fc_norm))


def test_weight_decay():
    model = tiny(class_token=True)
    assert model.no_weight_decay() == {"cls_token"}
    assert model.no_weight_decay(released=True) == tiny().no_weight_decay() == set()
    groups = {g["name"]: {id(p) for p in g["params"]} for g in parameter_groups(model, OptimConfig())}
    for name, parameter in model.named_parameters():
        held = [group for group, ids in groups.items() if id(parameter) in ids]
        expected = "exempt" if parameter.ndim == 1 or name == "cls_token" else "decayed"
        assert held == ([expected] if parameter.requires_grad else []), name


def test_layers():
    model = tiny(class_token=True)
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    assert layers.keys() == {name for name, _ in model.named_parameters()}
    for name, layer in layers.items():
        if name.startswith(("patch_embed", "cls_token")):
            assert layer == 0
        elif name.startswith("blocks"):
            assert layer == 1 + int(name.split(".")[1])
        else:
            assert layer == 3


# -- use --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 7}, r"model\.groups=7 does not divide model\.embed_dim=24 and 48"),
        ({"patch_size": 8}, r"tokens of 16 pixels: set model\.patch_size=16, not 8"),
        ({"prm_widths": [64, 64, 128]}, r"model\.prm_widths is \[64, 64, 128\]; give a width for each"),
        ({"token_widths": [7, 8]}, "width of 7 must be even"),
        ({"embed_dim": 25, "num_heads": 5}, r"model\.embed_dim=25 of two halves"),
        ({"embed_dim": 32, "groups": 8, "life": True}, "cuts q, k and v into 3 scales"),
        ({"join": "lape"}, "needs a position embedding"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(UserError, match=message):
        tiny(**options)


def test_bf16_autocast():
    model = tiny()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(IMAGES)
    assert torch.allclose(logits.float(), model(IMAGES), atol=0.02)

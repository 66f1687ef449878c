"""What may stand for LaPE's LayerNorm: each row of its Table 8 is its formula, starts, and is left out of the decay."""

import copy

import pytest
import torch

from gab.config import OptimConfig, ViTConfig
from gab.errors import UserError
from gab.models.fold import fold
from gab.models.lape import LaPE, LaPESharing
from gab.models.position_norm import NORMS
from gab.models.swin import SwinTransformer
from gab.models.vit import VisionTransformer
from gab.training.parameter_groups import parameter_groups

DIM, DEPTH, EPS = 4, 3, 0.1  # large enough that a wrong eps is seen
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def normalised(w):
    centred = w - w.mean(dim=-1, keepdim=True)
    return centred / (centred.square().mean(dim=-1, keepdim=True) + EPS).sqrt()


# By the norm: the formula of one layer, and the shapes of g and b (None: it has none).
TABLE8 = {
    "identity": (lambda w, g, b: w, None, None),
    "gain": (lambda w, g, b: g * w, (1,), None),
    "channel_gain": (lambda w, g, b: g * w, (DIM,), None),
    "affine": (lambda w, g, b: g * w + b, (DIM,), (DIM,)),
    "norm": (lambda w, g, b: normalised(w), None, None),
    "norm_gain": (lambda w, g, b: g * normalised(w), (1,), None),
    "norm_channel_gain": (lambda w, g, b: g * normalised(w), (DIM,), None),
    "layer_norm": (lambda w, g, b: g * normalised(w) + b, (DIM,), (DIM,)),
}


def test_every_norm_has_its_formula():
    assert TABLE8.keys() == NORMS.keys()


@pytest.mark.parametrize("join", [LaPE, LaPESharing])
@pytest.mark.parametrize("norm", NORMS)
def test_a_chain_of_formulas(join, norm):
    """w_l from w_{l-1} for LaPE, from w_0 for the first version."""
    formula, *shapes = TABLE8[norm]
    made = join(DIM, DEPTH, EPS, norm)
    start = w = torch.randn(1, 5, DIM)
    with torch.no_grad():
        for layer in made.norms:
            assert [p.shape for p in layer.parameters()] == [shape for shape in shapes if shape]
            for parameter in layer.parameters():
                parameter.add_(torch.rand(parameter.shape))
        for layer, placement in zip(made.norms, made(start), strict=True):
            w = formula(w if join is LaPE else start, *(*layer.parameters(), None, None)[:2])
            assert torch.allclose(placement.attention, w, atol=1e-6)
            assert placement.stream is None


# DeiT-Ti: 5,717,416 as without LaPE, and 12 layers of what the formula has: a g, a g for each of 192 channels, a b.
COUNTS = {
    "identity": 5_717_416,
    "gain": 5_717_428,
    "channel_gain": 5_719_720,
    "affine": 5_722_024,
    "norm": 5_717_416,
    "norm_gain": 5_717_428,
    "norm_channel_gain": 5_719_720,
    "layer_norm": 5_722_024,
}


@pytest.mark.parametrize("norm", COUNTS)
def test_counts(norm):
    with torch.device("meta"):
        model = VisionTransformer(ViTConfig(embed_dim=192, num_heads=3, join="lape", join_norm=norm), seed=0)
    assert sum(p.numel() for p in model.parameters()) == COUNTS[norm]


@pytest.fixture
def make(deit):
    def build(norm, **changes):
        return VisionTransformer(deit(**{"join": "lape", "join_norm": norm, **changes}), 32, num_classes=5, seed=0)

    return build


@pytest.mark.parametrize("norm", NORMS)
def test_start_and_decay(make, norm):
    """Gains begin at one and shifts at zero, whatever they were, all else as without them; neither decays."""
    model, plain = make(norm), make("layer_norm", join="add")
    with torch.no_grad():
        for parameter in model.join.parameters():
            parameter.fill_(7)
    model.start(0)
    started = {name: p for name, p in model.named_parameters() if name.startswith("join.")}
    assert all(bool((p == float(name.endswith("weight"))).all()) for name, p in started.items())
    shared = plain.state_dict()
    assert all(torch.equal(value, shared[name]) for name, value in model.state_dict().items() if name in shared)
    exempt = {
        id(p) for group in parameter_groups(model, OptimConfig()) if not group["weight_decay"] for p in group["params"]
    }
    assert all(id(p) in exempt for p in started.values())


@pytest.mark.parametrize("norm", NORMS)
def test_in_a_network(make, norm):
    """The chain counts, gets gradients, and can be cut short, moved to another size and folded."""
    model = make(norm, depth=3).eval()
    with torch.no_grad():
        model.pos_embed.mul_(50)
        for parameter in model.join.parameters():
            parameter.add_(0.3 * torch.rand(parameter.shape))
    expected = model(IMAGES)
    assert (expected - make(norm, depth=3, join="add", join_norm="layer_norm").eval()(IMAGES)).abs().max() > 1e-3
    expected.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in (*model.join.parameters(), model.pos_embed))
    assert torch.allclose(fold(copy.deepcopy(model))(IMAGES), expected, atol=1e-6)
    larger = copy.deepcopy(model)
    larger.set_input_size(48)
    assert larger(torch.randn(1, 3, 48, 48)).shape == (1, 5)
    second = model.forward_intermediates(IMAGES, [1], intermediates_only=True, output_fmt="NLC")[0]
    model.prune_intermediate_layers([1], prune_norm=True)
    assert torch.equal(model(IMAGES)[:, 1:], second)


def test_in_the_stages_of_swin(swin):
    model = SwinTransformer(swin(position="learnable", join="lape", join_norm="gain"), 32, num_classes=5, seed=0)
    gains = {name: p.shape for name, p in model.named_parameters() if ".join." in name}
    assert gains == {f"layers.{i}.join.norms.{j}.weight": (1,) for i in range(2) for j in range(2)}
    assert model(IMAGES).shape == (2, 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"join_norm": "batch"},
            r"model\.join_norm=batch is unknown: choose one of layer_norm, identity, gain, .*norm_channel",
        ),
        (
            {"join_norm": "gain", "join": "shared"},
            r"model\.join_norm=gain stands for .*model\.join=shared.*model\.join=lape",
        ),
        (
            {"join_norm": "norm", "join": "add", "position": "none"},
            r"model\.join_norm=norm .*model\.join=add does not have",
        ),
    ],
)
def test_what_does_not_go_together(make, swin, changes, message):
    with pytest.raises(UserError, match=message):
        make(**{"norm": changes["join_norm"], **{key: value for key, value in changes.items() if key != "join_norm"}})
    with pytest.raises(UserError, match=message):
        SwinTransformer(swin(**{"position": "learnable", "join": "lape", **changes}), 32)

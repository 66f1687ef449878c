"""Networks whose attention the kernels compute, on a GPU or, started by test_interpreter.py, in Triton's interpreter.

Outputs agree with those of the definition to 1e-5 in float32 and to 2e-2 in half precision, in units of the largest.
"""

import copy
import os

import pytest
import timm
import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer_relpos import VisionTransformerRelPos

from gab.attention import BACKENDS
from gab.attention.choice import use
from gab.config import GaussianConfig, SwinConfig, SwinV2Config, ViTConfig
from gab.models.build import build
from gab.models.convert import convert
from tests import golden_noise

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason="needs a GPU")
DEVICE = "cpu" if INTERPRETED else "cuda"

SMALL = {"embed_dim": 16, "num_heads": 2, "patch_size": 8, "gab": True, "drop_path_rate": 0.0}
WINDOWS = {"embed_dim": 8, "depths": [2], "num_heads": [2], "window_size": 4, "gab": True, "drop_path_rate": 0.0}
NETWORKS = {
    "vit": ViTConfig(base="vit", depth=1, rel_pos="mlp", position="none", **SMALL),
    "per head, dropout, recomputed": ViTConfig(
        base="vit",
        depth=1,
        gaussian=GaussianConfig(per_head=True),
        attn_drop_rate=0.2,
        grad_checkpointing=True,
        **SMALL,
    ),
    "every idea, class token": ViTConfig(
        base="deit",
        depth=1,
        join="lape",
        life=True,
        gaussian=GaussianConfig(class_bias="learned"),
        **SMALL | {"embed_dim": 24},  # three scales of two heads
    ),
    "swin": SwinConfig(base="swin", **WINDOWS),
    "swinv2": SwinV2Config(base="swinv2", **WINDOWS),
}


def results(model, images, backend=None):
    """Logits and gradients; without a backend those of a network of timm's."""
    model = copy.deepcopy(model)
    if backend:
        use(model, backend)
    torch.manual_seed(0)  # of dropout
    logits = model(images)
    logits.square().sum().backward()
    return [logits.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.fixture
def taken(monkeypatch):
    """Names of the backends that have computed anything."""
    names = set()

    def noted(name, compute):
        return lambda *given: names.add(name) or compute(*given)

    for name, compute in BACKENDS.items():
        monkeypatch.setitem(BACKENDS, name, noted(name, compute))
    return names


@pytest.mark.parametrize("name", NETWORKS)
def test_every_backend_gives_the_same(name, taken):
    model = build(NETWORKS[name], image_size=32, num_classes=3, seed=0).to(DEVICE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # norms of Swin V2 start at zero
    images = torch.randn(1, 3, 32, 32, device=DEVICE)
    expected = results(model, images, "reference")
    for backend in ("sdpa", "fused"):
        taken.clear()
        found = results(model, images, backend)
        assert taken == {backend}
        largest = max(x.abs().max() for x in expected[1:])
        assert (found[0] - expected[0]).abs().max() < 1e-5 * expected[0].abs().max()
        for got, wanted in zip(found[1:], expected[1:], strict=True):
            assert (got - wanted).abs().max() < 1e-5 * largest


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    model = build(NETWORKS["vit"], image_size=32, num_classes=3, seed=0).to(DEVICE).eval()
    images = torch.randn(1, 3, 32, 32, device=DEVICE)
    exact = results(model, images, "reference")[0]
    with torch.autocast(DEVICE, dtype):
        for backend in ("reference", "sdpa", "fused"):
            assert (results(model, images, backend)[0] - exact).abs().max() < 2e-2 * exact.abs().max()


def timms():
    """Networks of timm with biases, and ours with the same weights."""
    shape = {"img_size": 32, "num_classes": 3, "embed_dim": 16}
    vit = VisionTransformerRelPos(
        patch_size=8, depth=2, num_heads=2, init_values=1.0, qkv_bias=False, fc_norm=True, **shape
    )
    own = {"base": "vit", "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "layer_scale": 1.0}
    own |= {"qkv_bias": False, "class_token": False, "pool": "avg", "position": "none", "rel_pos": "mlp"}
    yield vit, ViTConfig(**own)
    swin = SwinTransformer(patch_size=4, depths=(2,), num_heads=(2,), window_size=4, drop_path_rate=0.0, **shape)
    yield swin, SwinConfig(base="swin", **WINDOWS | {"embed_dim": 16, "gab": False})


def test_timm(taken):
    """Outputs and gradients by the kernels are those of timm's networks, within 1e-5."""
    images = torch.randn(1, 3, 32, 32, device=DEVICE)
    for theirs, cfg in timms():
        ours = build(cfg, image_size=32, num_classes=3, seed=0)
        ours.load_state_dict(theirs.state_dict())
        ours, theirs = ours.to(DEVICE).eval(), theirs.to(DEVICE).eval()
        found, expected = results(ours, images, "fused"), results(theirs, images)
        largest = max(x.abs().max() for x in expected)
        for got, wanted in zip(found, expected, strict=True):
            assert (got - wanted).abs().max() < 1e-5 * largest
        assert taken == {"fused"}


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("life_deit_tiny_patch4_32_ms", "deit_tiny_patch4_life_32"),
        pytest.param("lape_deit_tiny_learnable_LaPE", "deit_tiny_patch16_lape_224", marks=pytest.mark.slow),
    ],
)
@torch.no_grad()
def test_official_output(file, name):
    """Of LaPE's and LIFE's authors, within 2e-5, by the kernels."""
    golden = golden_noise.load(file)
    found = convert(golden_noise.fill(golden["state_dict_keys"]), name)
    model = timm.create_model(name, **found.options).to(DEVICE).eval()
    model.load_state_dict(found.weights)
    use(model, "fused")
    logits = model(golden_noise.images(golden["image_size"]).to(DEVICE)).cpu()
    assert (logits - torch.tensor(golden["logits"])).abs().max() < 2e-5

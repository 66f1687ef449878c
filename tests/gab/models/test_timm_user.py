"""What a timm user does works on every network that this package registers; each is shrunk, and built once."""

import copy
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import timm
import torch
from timm.models import group_parameters
from torch import Tensor, nn

import gab  # noqa: F401  # registers the networks
from gab.export import save_onnx
from gab.models.fold import fold
from gab.models.registry import REGISTERED

VIT = {"embed_dim": 24, "depth": 2, "num_heads": 3}
SWIN = {"embed_dim": 12, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "patch_size": 4}
SHRINK: dict[str, tuple[int, dict[str, Any]]] = {  # image size, and what makes a network of the kind small
    "vit": (32, {**VIT, "patch_size": 8}),
    "compact": (32, VIT),
    "t2t": (64, {**VIT, "token_width": 8}),
    "vitae": (64, {**VIT, "token_widths": [6, 6], "prm_widths": [4, 4], "groups": 6}),
    "swin": (32, SWIN),
    "swinv2": (32, SWIN),
}
NAMES = sorted(name for name in REGISTERED if not name.startswith("gab_"))


def shrink(name: str) -> tuple[int, dict[str, Any]]:
    size, changes = SHRINK[REGISTERED[name][1].network]
    return size, dict(changes)


def distinct() -> list[str]:
    """One name for each network that is another one when shrunk."""
    first: dict[str, str] = {}
    for name in NAMES:
        config = replace(REGISTERED[name][1], base="", **shrink(name)[1])
        first.setdefault(f"{config}", name)
    return list(first.values())


DISTINCT = distinct()


def create(name: str, **options: Any) -> nn.Module:
    size, changes = shrink(name)
    torch.manual_seed(0)
    return timm.create_model(name, **{"num_classes": 5, "img_size": size, **changes, **options})


@cache
def built(name: str) -> nn.Module:
    """With noise on every parameter, so that each counts; not to be changed."""
    model = create(name, drop_path_rate=0.0).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if not key.endswith("sigma"):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def images(name: str, batch: int = 2) -> Tensor:
    size = shrink(name)[0]
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


@cache
def logits(name: str) -> Tensor:
    with torch.no_grad():
        return built(name)(images(name))


def close(actual: Tensor, name: str, tolerance: float = 1e-5) -> bool:
    expected = logits(name)
    return bool((actual - expected).abs().max() < tolerance * expected.abs().max())


def test_all_kinds_are_here() -> None:
    assert {REGISTERED[name][1].network for name in NAMES} == SHRINK.keys()
    assert set(NAMES) <= set(timm.list_models(module="registry"))


@pytest.mark.parametrize("name", NAMES)
def test_create_and_train(name: str) -> None:
    """Every trainable parameter gets a gradient: DDP needs no search for unused ones."""
    model = create(name, num_classes=7, drop_path_rate=0.1).train()
    out = model(images(name))
    assert out.shape == (2, 7)
    out.square().sum().backward()
    assert [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("name", DISTINCT)
def test_head(name: str) -> None:
    model = copy.deepcopy(built(name))
    features = model.forward_features(images(name))
    assert close(model.forward_head(features), name)
    model.reset_classifier(3)
    assert model(images(name)).shape == (2, 3)
    model.reset_classifier(0)
    assert model(images(name)).shape[-1] == model.num_features


@pytest.mark.parametrize("name", DISTINCT)
def test_features(name: str) -> None:
    out = create(name, features_only=True, out_indices=(0, 1))
    maps = out(images(name))
    assert len(maps) == 2
    size = shrink(name)[0]
    for found, channels, reduction in zip(maps, out.feature_info.channels(), out.feature_info.reduction()):
        side = size // reduction
        assert sorted(found.shape[1:]) == sorted((channels, side, side))
    taken = built(name).forward_intermediates(images(name), intermediates_only=True)
    assert all(torch.isfinite(one).all() for one in taken)


@pytest.mark.parametrize("name", DISTINCT)
def test_layer_decay(name: str) -> None:
    model = built(name)
    for coarse in (False, True):
        groups = group_parameters(model, model.group_matcher(coarse=coarse))
        assert sorted(key for keys in groups.values() for key in keys) == sorted(k for k, _ in model.named_parameters())
    fine = group_parameters(model, model.group_matcher(), reverse=True)
    stem = {key for key in fine if key.startswith("patch_embed")}
    assert {fine[key] for key in stem} == {0}
    assert fine[next(key for key in fine if key.startswith("head"))] == max(fine.values())
    assert set(model.no_weight_decay()) <= fine.keys()


@pytest.mark.parametrize("name", DISTINCT)
def test_gradient_checkpointing(name: str) -> None:
    grads = []
    for enable in (False, True):
        model = copy.deepcopy(built(name)).train()
        model.set_grad_checkpointing(enable)
        torch.manual_seed(3)
        model(images(name)).square().sum().backward()
        grads.append({key: p.grad for key, p in model.named_parameters() if p.grad is not None})
        buffers = dict(model.named_buffers())
    assert grads[0].keys() == grads[1].keys()
    assert all(torch.equal(grads[0][key], grads[1][key]) for key in grads[0])
    assert all(torch.isfinite(value).all() for value in buffers.values())


@pytest.mark.parametrize("name", DISTINCT)
def test_bf16_and_channels_last(name: str) -> None:
    model = copy.deepcopy(built(name)).to(memory_format=torch.channels_last)
    assert close(model(images(name).contiguous(memory_format=torch.channels_last)), name)
    with torch.autocast("cpu", torch.bfloat16):
        out = model.train()(images(name))
    assert torch.isfinite(out).all()
    out.float().square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", DISTINCT)
def test_another_image_size(name: str) -> None:
    model, size = copy.deepcopy(built(name)), shrink(name)[0]
    model.set_input_size((2 * size, size))
    assert torch.isfinite(model(torch.randn(1, 3, 2 * size, size))).all()
    model.set_input_size(2 * size)
    assert torch.isfinite(model(torch.randn(1, 3, 2 * size, 2 * size))).all()
    if REGISTERED[name][1].network.startswith("swin"):
        return  # timm lets windows grow with the image, and tables with them
    larger = create(name, img_size=2 * size)
    assert [p.shape for p in larger.parameters()] == [p.shape for p in model.parameters()]


@pytest.mark.parametrize("name", DISTINCT)
def test_compiles_without_graph_breaks(name: str) -> None:
    compiled = torch.compile(copy.deepcopy(built(name)), fullgraph=True, backend="aot_eager")
    out = compiled(images(name))
    assert close(out, name)
    torch._dynamo.reset()


@pytest.mark.parametrize("name", DISTINCT)
def test_torch_export(name: str) -> None:
    """For any number of images; the folded network, which has all parts but those that fold takes away."""
    batch = {0: torch.export.Dim("batch")}
    model = fold(copy.deepcopy(built(name)))
    assert close(model(images(name)), name)
    program = torch.export.export(model, (images(name, 3),), dynamic_shapes=(batch,)).module()
    assert close(program(images(name)), name)


SMALLER: dict[str, dict[str, Any]] = {  # each kind of block once: compiling one more takes half a minute
    "deit_tiny_patch16_life_224": {"depth": 1},
    "swinv2_tiny_window8_life_256": {"depths": [2], "num_heads": [2]},
    "vitae_tiny": {"depth": 1},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLER)
def test_inductor(name: str) -> None:
    model = create(name, drop_path_rate=0.0, **SMALLER[name]).train()
    compiled = torch.compile(model, fullgraph=True)
    compiled(images(name)).square().sum().backward()
    model.eval()
    with torch.no_grad():
        assert torch.isfinite(compiled(images(name))).all()
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("name", {REGISTERED[name][1].network: name for name in DISTINCT}.values())
def test_onnx(name: str, tmp_path) -> None:
    """Of the network that is not folded, so that this exports what folding takes away."""
    pytest.importorskip("onnxruntime")
    assert save_onnx(built(name), tmp_path / "model.onnx", shrink(name)[0]) is not None

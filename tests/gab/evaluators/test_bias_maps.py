"""Maps of learned biases against the tensors that are added to the scores, and fits of known Gaussians."""

import numpy as np
import pytest
import timm
import torch
from torch import nn

import gab  # noqa: F401  (registers the models)
from gab.config import SwinConfig, SwinV2Config, ViTConfig
from gab.errors import UserError
from gab.evaluators import bias_figures
from gab.evaluators.bias_maps import LayerBias, fit_bias, fit_rows, layer_biases, map_rows
from gab.evaluators.gaussian_fit import GaussianFit, fit_gaussian
from gab.models.fold import fold
from gab.models.swin import SwinTransformer
from gab.models.swinv2 import SwinTransformerV2
from gab.models.vit import VisionTransformer

VIT = {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 8, "gab": True}
SWIN = {"embed_dim": 12, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4, "gab": True}


def vit(rel_pos: str, **options) -> nn.Module:
    return started(
        VisionTransformer(ViTConfig(**{**VIT, "rel_pos": rel_pos, **options}), (32, 48), num_classes=3, seed=0)
    )


def started(model: nn.Module) -> nn.Module:
    """With tables and Gaussians that differ from layer to layer, in training mode."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "table" in name or "gaussian" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return model.train()


MODELS = {
    "mlp": lambda: vit("mlp", class_token=False, pool="avg"),
    "mlp, class token": lambda: vit("mlp", class_token=True, pool="token"),
    "table": lambda: vit("table", class_token=True, pool="token"),
    "table_norm": lambda: vit("table_norm", class_token=False, pool="avg"),
    "bias": lambda: vit("bias", class_token=True, pool="token"),
    "swin": lambda: started(SwinTransformer(SwinConfig(**SWIN), 32, num_classes=3, seed=0)),
    "swinv2": lambda: started(SwinTransformerV2(SwinV2Config(**SWIN), 32, num_classes=3, seed=0)),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_maps_are_what_is_added(name: str) -> None:
    model = MODELS[name]()
    biases = layer_biases(model)
    assert all(module.training for module in model.modules())
    model.eval()
    modules = dict(model.named_modules())
    assert len(biases) == 2
    for layer in biases:
        with torch.no_grad():
            whole, gaussian = modules[layer.name].get_bias(torch.float32)[0], modules[layer.name].gaussian()[0]
        height, width = layer.grid
        prefix = whole.shape[-1] - height * width
        assert prefix == int(name in ("mlp, class token", "table", "bias"))
        maps = layer.maps("sum", (2, 1))
        wanted = whole[:, prefix + 2 * width + 1, prefix:].reshape(-1, height, width)
        np.testing.assert_allclose(maps, wanted, atol=1e-5)
        np.testing.assert_allclose(maps, layer.maps("relative", (2, 1)) + layer.maps("gaussian", (2, 1)), atol=1e-6)
        np.testing.assert_allclose(layer.parts["gaussian"], gaussian[:, prefix:, prefix:], atol=1e-6)
        assert layer.query() == ((height - 1) // 2, (width - 1) // 2)
    heads = {row["head"] for row in map_rows(biases) if row["part"] == "gaussian"}
    assert heads == {"all"}
    [value] = [
        row["value"]
        for row in map_rows(biases, (2, 1))
        if (row["layer"], row["part"], row["head"], row["row"], row["column"]) == (2, "relative", 2, 0, 3)
    ]
    assert value == pytest.approx(biases[1].maps("relative", (2, 1))[1, 0, 3])


@pytest.mark.parametrize(
    "name", ["vit_relpos_small_patch16_224", "beit_base_patch16_224", "swin_tiny_patch4_window7_224"]
)
def test_networks_of_timm(name: str) -> None:
    options = {"depths": (1, 1, 1, 1)} if "swin" in name else {"depth": 1}
    model = timm.create_model(name, img_size=112, **options)
    for parameter_name, parameter in model.named_parameters():
        if "table" in parameter_name:
            nn.init.normal_(parameter)
    layer = layer_biases(model)[0]
    attn = dict(model.named_modules())[layer.name].eval()
    with torch.no_grad():
        whole = attn.rel_pos.get_bias() if hasattr(attn, "rel_pos") else attn._get_rel_pos_bias()
    assert layer.grid == (7, 7)
    assert set(layer.parts) == {"relative"}
    np.testing.assert_allclose(layer.parts["relative"], whole[0][:, -49:, -49:], atol=1e-6)


def peak(height: float, floor: float, sigma_x: float = 2.5, sigma_y: float = 4.0) -> np.ndarray:
    fit = GaussianFit(1.0, sigma_x, sigma_y, 6.0, 6.0, height * 2 * np.pi * sigma_x * sigma_y)
    return fit.values((14, 14)) + floor


def test_both_forms_of_the_fit() -> None:
    """A peak that falls to its floor within the map is found by both; one that does not, by the free offset alone."""
    for floor in (-3.0, 0.0, 5.0):
        paper, total = fit_bias(peak(4.0, floor, 1.5, 1.5))
        assert (paper.sigma_x, paper.sigma_y, paper.offset) == pytest.approx((1.5, 1.5, 0), rel=1e-3)
        assert paper.amplitude / (2 * np.pi * 1.5**2) * total == pytest.approx(4, rel=1e-3)
        free, total = fit_bias(peak(4.0, floor), "offset")
        assert (free.sigma_x, free.sigma_y, free.x, free.y) == pytest.approx((2.5, 4.0, 6.0, 6.0), rel=1e-3)
        assert free.r_squared == pytest.approx(1)
        low = peak(4.0, floor).min() - floor
        assert -free.offset * total == pytest.approx(low, rel=1e-2)  # the map's minimum lies above the true floor
    assert fit_bias(peak(4.0, 0.0, 5.0, 8.0))[0].sigma_y < 6.5  # the paper's form takes the minimum for the floor
    np.testing.assert_allclose(
        fit_gaussian(peak(1.0, 0.2), offset=True).values((14, 14)), peak(1.0, 0.2) / peak(1.0, 0.2).sum(), atol=1e-7
    )


def test_the_papers_start_is_the_sheets() -> None:
    """R² = 1 - var(residual) / var(map), of the mean over heads with its minimum subtracted."""
    torch.manual_seed(0)
    noise = 0.2 * torch.randn(2, 196, 196).double().numpy()
    bias = LayerBias("attn", (14, 14), {"relative": noise + np.tile(peak(2.0, 1.0).ravel(), (196, 1))})
    [paper, free] = fit_rows([bias])
    found = bias.maps("relative").mean(0)
    left = (found - found.min()) / (found - found.min()).sum()
    fit, _ = fit_bias(found)
    assert (paper["form"], paper["row"], paper["column"], paper["inside"]) == ("paper", 6, 6, True)
    assert paper["r_squared"] == pytest.approx(1 - np.var(left - fit.values((14, 14))) / np.var(left))
    assert free["r_squared"] >= paper["r_squared"]
    assert free["height"] == pytest.approx(2.0, rel=0.1)
    assert free["centre_distance"] < 0.3


def test_what_cannot_be_fitted_is_said() -> None:
    small = layer_biases(vit("table"))
    assert {row["note"] for row in fit_rows(small)} == {"24 points are too few for a fit"}
    assert bias_figures.fits(fit_rows(small)) is None
    flat = [LayerBias("attn", (6, 6), {"relative": np.ones((1, 36, 36))})]
    assert [(row["r_squared"], row["note"]) for row in fit_rows(flat)] == 2 * [
        (None, "the bias is the same everywhere")
    ]
    broken = [LayerBias("attn", (6, 6), {"relative": np.full((1, 36, 36), np.nan)})]
    assert {row["note"] for row in fit_rows(broken)} == {"the bias is not finite"}
    slope = [LayerBias("attn", (8, 8), {"relative": np.tile(np.arange(64.0) // 8, (1, 64, 1))})]
    assert fit_rows(slope)[0]["r_squared"] > 0.9
    assert not all(row["inside"] for row in fit_rows(slope))


def test_figures() -> None:
    """A column per layer and a row per part or head, one scale, empty places where a layer has fewer heads."""
    biases = layer_biases(MODELS["swin"]())
    overview = bias_figures.bias_maps(biases)
    panels = [axes for axes in overview.axes if axes.images]
    assert len(panels) == 6
    assert len({axes.images[0].get_clim() for axes in panels}) == 1
    np.testing.assert_allclose(panels[0].images[0].get_array().mean(), 0, atol=1e-9)
    heads = [axes for axes in bias_figures.bias_heads(biases, "relative").axes if axes.images]
    assert len(heads) == 1 + 2
    rows = fit_rows([LayerBias("attn", (14, 14), {"relative": peak(2.0, 0.0).reshape(1, 1, 196).repeat(196, 1)})])
    assert len(bias_figures.fits(rows).axes) == 3


def test_bad_input() -> None:
    biases = layer_biases(vit("mlp"))
    with pytest.raises(UserError, match=r"\(4, 0\) lies outside of the grid of 4 x 6 patches"):
        biases[0].maps("sum", (4, 0))
    with pytest.raises(UserError, match="query=2 are 4 patches"):
        biases[0].query(2)
    for name in ("resnet18", "deit_tiny_patch16_224"):
        with pytest.raises(UserError, match="adds no bias to its attention"):
            layer_biases(timm.create_model(name))
    model = vit("mlp").eval()
    fold(model)
    with pytest.raises(UserError, match=r"blocks\.0\.attn are folded into one constant"):
        layer_biases(model)

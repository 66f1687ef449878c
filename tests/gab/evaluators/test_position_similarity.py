"""Similarity of position embeddings: by hand, for every way that they join the tokens."""

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F

import gab  # noqa: F401  (registers the models)
from gab.config import SwinConfig, ViTConfig
from gab.errors import UserError
from gab.evaluators.attention_figures import similarity_by_distance, similarity_maps
from gab.evaluators.position_similarity import Similarity, map_rows, position_similarity, summary_rows
from gab.models.swin import SwinTransformer
from gab.models.vit import VisionTransformer


def vit(join: str, position: str = "learnable") -> VisionTransformer:
    torch.manual_seed(0)
    options = {"embed_dim": 24, "depth": 3, "num_heads": 2, "patch_size": 8, "class_token": True, "pool": "token"}
    model = VisionTransformer(ViTConfig(**options, rel_pos="none", join=join, position=position), (32, 48), seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "join.norms" in name:
                parameter.add_(torch.rand(parameter.shape))
    return model


def test_lape_by_hand() -> None:
    """Row by row after the norm of each layer, the class token's left out."""
    model = vit("lape")
    found = position_similarity(model)
    position = model.pos_embed.detach()
    for layer, (one, norm) in enumerate(zip(found, model.join.norms, strict=True), start=1):
        position = norm(position).detach()
        patches = position[0, 1:]
        assert (one.layer, one.grid) == (layer, (4, 6))
        wanted = [F.cosine_similarity(patches[9][None], other[None]).item() for other in patches]  # row 1, column 3
        np.testing.assert_allclose(one.map((1, 3)).ravel(), wanted, atol=1e-5)
    assert found[0].targets() == [(1, 2)]
    assert len(map_rows(found, 2)) == 3 * 4 * 24
    assert [row["layer"] for row in summary_rows(found)] == [1, 2, 3]


@pytest.mark.parametrize(("join", "layers"), [("add", [1]), ("shared", [1, 2, 3]), ("unshared", [1, 2, 3])])
def test_other_joins(join: str, layers: list[int]) -> None:
    found = position_similarity(vit(join))
    assert [one.layer for one in found] == layers
    same = np.allclose(found[0].values, found[-1].values)
    assert same == (join != "unshared")


def test_other_networks() -> None:
    swin = SwinTransformer(
        SwinConfig(embed_dim=12, depths=[2, 1], num_heads=[1, 2], window_size=4, position="learnable", join="lape"),
        32, seed=0,
    )  # fmt: skip
    assert [(one.layer, one.grid) for one in position_similarity(swin)] == [(1, (8, 8)), (2, (8, 8)), (3, (4, 4))]
    deit = timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, depth=1)
    [one] = position_similarity(deit)
    unit = F.normalize(deit.pos_embed.detach()[0, 2:], dim=1)
    np.testing.assert_allclose(one.values, unit @ unit.T, atol=1e-6)


def test_maps_of_positions() -> None:
    """Channels last are rows of the grid, though VOLO's patches are finer; channels first are not read as rows."""
    volo = timm.create_model("volo_d1_224")
    [one] = position_similarity(volo)
    unit = F.normalize(volo.pos_embed.detach()[0].flatten(0, 1), dim=1)
    assert one.grid == (14, 14)
    np.testing.assert_allclose(one.values, unit @ unit.T, atol=1e-6)
    for name, shape in (("pit_ti_224", "1, 64, 27, 27"), ("hiera_tiny_224", "1, 3136, 96")):
        with pytest.raises(UserError, match=rf"of shape \({shape}\), in which there is no known grid of patches"):
            position_similarity(timm.create_model(name))


def test_summary() -> None:
    """exp(-d / 3) comes half the way to the mean of its pairs where it crosses that line; sinusoids fall."""
    rows, columns = np.indices((10, 10)).reshape(2, -1)
    distance = np.hypot(rows[:, None] - rows, columns[:, None] - columns)
    one = Similarity(1, (10, 10), np.exp(-distance / 3))
    pairs = np.triu_indices(100, 1)
    mean = one.values[pairs].mean()
    found = one.summary()
    assert found["mean"] == pytest.approx(mean)
    assert found["half_distance"] == pytest.approx(-3 * np.log((1 + mean) / 2), rel=0.15)
    assert found["distance_correlation"] == pytest.approx(np.corrcoef(one.values[pairs], distance[pairs])[0, 1])
    radii, curve = one.by_distance()
    assert radii[0] == 0
    assert curve[0] == 1
    assert radii[-1] == 13
    [sincos] = position_similarity(vit("add", "sincos_2d"))
    assert sincos.summary()["distance_correlation"] < -0.5
    alike = Similarity(1, (3, 3), np.ones((9, 9))).summary()
    assert alike == {"distance_correlation": None, "half_distance": None, "mean": 1.0}
    random = np.random.default_rng(0).standard_normal((100, 64))
    unlearned = Similarity(1, (10, 10), np.corrcoef(random)).summary()
    assert unlearned["half_distance"] is None


def test_figures() -> None:
    found = position_similarity(vit("lape"))
    panels = [axes for axes in similarity_maps(found, [(0, 0), (1, 3)]).axes if axes.images]
    assert len(panels) == 6
    assert len({axes.images[0].get_clim() for axes in panels}) == 1
    [axes] = [axes for axes in similarity_by_distance(found).axes if len(axes.lines) > 1]
    assert axes.get_xlabel() == "distance of two patches (patches, rounded)"


def test_bad_input() -> None:
    with pytest.raises(UserError, match="has no absolute position embedding"):
        position_similarity(vit("add", "none"))
    with pytest.raises(UserError, match="has no absolute position embedding"):
        position_similarity(timm.create_model("resnet18"))
    with pytest.raises(UserError, match=r"\(0, 6\) lies outside of the grid of 4 x 6"):
        map_rows(position_similarity(vit("lape")), (0, 6))

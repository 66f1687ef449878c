"""Mean attention distance: by hand, in windows, and the same for any batches."""

import numpy as np
import pytest
import timm
import torch
from torch import nn

import gab  # noqa: F401  (registers the models)
from gab.errors import UserError
from gab.evaluators.attention_distance import AttentionDistance, attention_distance, distances
from gab.evaluators.attention_maps import attention_layers, watch, window_positions


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(5, 3, 32, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("deit_tiny_patch16_224", img_size=(32, 64), patch_size=8, depth=2, num_classes=3)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight.mul_(8)
    return model.eval()


def test_by_hand(vit: nn.Module, images: torch.Tensor) -> None:
    """Image by image and query by query, over patches alone; mean and standard error over images; exact counts."""
    taken: list[torch.Tensor] = []
    with torch.no_grad(), watch(attention_layers(vit, (32, 64)), lambda layer, weights: taken.append(weights[:, 0])):
        vit(images)
    places = [(8 * row, 8 * column) for row in range(4) for column in range(8)]
    pixels = np.array([[np.hypot(a[0] - b[0], a[1] - b[1]) for b in places] for a in places])
    found = attention_distance(vit, images)
    for layer, weights in enumerate(taken):
        patches = weights[:, :, 1:, 1:].double().numpy()
        by_image = ((patches * pixels).sum(-1) / patches.sum(-1)).mean(-1)  # (images, heads)
        np.testing.assert_allclose(found.means[layer], by_image.mean(0), rtol=1e-6)
        np.testing.assert_allclose(found.standard_errors[layer], by_image.std(0, ddof=1) / 5**0.5, rtol=1e-4)
    first = found.rows()[0]
    assert (first["layer"], first["head"], first["images"], len(found.rows())) == (1, 1, 5, 6)
    assert first["patches"] == pytest.approx(first["pixels"] / 8)
    assert first["to_prefix_percent"] == pytest.approx(100 * taken[0][:, 0, 1:, 0].mean().item(), rel=1e-5)
    assert found.uniform == pytest.approx([pixels.mean()] * 2)
    assert found.summary()["pixels"] == pytest.approx(np.mean([one.mean() for one in found.means]))


def test_any_batches_and_processes(vit: nn.Module, images: torch.Tensor) -> None:
    whole = attention_distance(vit, images)
    shares = [attention_distance(vit, [images[:1], images[1:3]]), attention_distance(vit, images[3:], batch_size=1)]
    shares[0].merge(shares[1])
    shares[0].merge(AttentionDistance(vit, (32, 64)))  # of a process without images
    assert shares[0].count == 5
    for one, other in zip(
        (whole.means, whole.standard_errors), (shares[0].means, shares[0].standard_errors), strict=True
    ):
        np.testing.assert_allclose(np.concatenate(one), np.concatenate(other), rtol=1e-5)


def test_shifted_windows() -> None:
    """Patches that a shifted window holds side by side although they lie apart have no distance; nor has padding."""
    assert window_positions((4, 4), (2, 2), (1, 1))[0].tolist() == [5, 6, 9, 10]
    assert window_positions((4, 4), (2, 2), (1, 1))[3].tolist() == [15, 12, 3, 0]
    assert window_positions((3, 3), (2, 2), (0, 0))[3].tolist() == [8, -1, -1, -1]
    torch.manual_seed(0)
    model = timm.create_model("swin_tiny_patch4_window7_224", img_size=32, window_size=4, depths=(2, 1, 1, 1)).eval()
    plain, shifted = attention_layers(model, (32, 32))[:2]
    pixels = distances(shifted, (32, 32))
    assert not distances(plain, (32, 32)).isnan().any()
    assert pixels.isnan().any()
    assert pixels.nan_to_num().max() == pytest.approx(4 * 18**0.5)  # across a window of 4 patches of 4 pixels
    masked: list[bool] = []

    def take(layer, weights: torch.Tensor) -> None:
        apart = distances(layer, (32, 32)).isnan()[:, None].expand_as(weights[0])
        masked.append(weights[0][apart].max() < 1e-12 if apart.any() else True)

    with torch.no_grad(), watch([plain, shifted], take):
        model(torch.randn(1, 3, 32, 32))
    assert masked == [True, True]
    found = attention_distance(model, torch.randn(2, 3, 32, 32))
    assert found.patches[:2] == [4, 4]
    assert found.uniform[1] < found.uniform[0]
    for means, uniform in zip(found.means, found.uniform, strict=True):  # hardly trained: nearly even
        np.testing.assert_allclose(means, uniform, rtol=0.15, atol=1e-9)


def test_bad_input(vit: nn.Module) -> None:
    with pytest.raises(UserError, match="needs images, and there are none"):
        attention_distance(vit, [])
    with pytest.raises(UserError, match="ResNet has no attention weights"):
        attention_distance(timm.create_model("resnet18"), torch.zeros(1, 3, 32, 32))

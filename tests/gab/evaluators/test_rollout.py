"""Attention roll-out: the sheet's vectors and properties, windows against one matrix of all patches, whole networks."""

import pytest
import timm
import torch
from torch import Tensor, nn

import gab  # noqa: F401  (registers the models)
from gab.errors import UserError
from gab.evaluators.attention_maps import attention_layers, watch
from gab.evaluators.attention_rollout import attention_rollout, patch_logits
from gab.evaluators.rollout import RollOut, dense_roll_out, min_max, read, roll_out, scaled

A1 = torch.tensor([[0.5, 0.25, 0.25], [0.2, 0.6, 0.2], [0.1, 0.3, 0.6]])[None, None]
A2 = torch.tensor([[0.2, 0.4, 0.4], [0.3, 0.4, 0.3], [0.0, 0.5, 0.5]])[None, None]
P = torch.tensor([[0.9, 0.1], [0.5, 0.5]])

NETWORKS = {
    "gab": ("vit_relpos_small_patch16_gab_224", {"img_size": 32, "patch_size": 8, "depth": 3}),
    "lape": ("deit_tiny_patch16_lape_224", {"img_size": 32, "patch_size": 8, "depth": 3}),
    "distilled": ("deit_tiny_distilled_patch16_224", {"img_size": 32, "patch_size": 8, "depth": 2}),
    "swin": ("swin_small_patch4_window7_gab_224", {"img_size": 64, "window_size": 4, "depths": (2, 2, 1, 1)}),
    "swinv2": ("swinv2_tiny_window8_256", {"img_size": 64, "window_size": 4, "depths": (2, 2, 1, 1)}),
    "padded": ("swin_tiny_patch4_window7_224", {"img_size": 72, "depths": (2, 2, 1, 1)}),
    "vitae": ("vitae_tiny", {"img_size": 32}),
    "cvt": ("cvt_7_4_32", {}),
    "t2t": ("t2t_vit_7", {"img_size": 32}),
}


def network(name: str) -> tuple[nn.Module, Tensor]:
    """A small network whose attention is far from even, and two images."""
    architecture, options = NETWORKS[name]
    torch.manual_seed(0)
    model = timm.create_model(architecture, num_classes=5, **options).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "qkv" in parameter_name or parameter_name.endswith("gamma"):
                parameter.mul_(5).add_(0.1)
    return model, torch.randn(2, 3, *(2 * [options.get("img_size", 32)]))


def soft(*shape: int, seed: int = 0) -> Tensor:
    return (2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).softmax(-1)


def close(found: Tensor, wanted: list) -> None:
    torch.testing.assert_close(found, torch.tensor(wanted), atol=1e-6, rtol=0)


def test_the_sheet() -> None:
    matrix = roll_out([A1, A2])
    close(matrix[0], [[0.48, 0.265, 0.255], [0.19, 0.60125, 0.20875], [0.0625, 0.3125, 0.625]])
    close(read(matrix, "class", prefix=1)[0], [0.265, 0.255])
    close(scaled(read(matrix, "class", prefix=1))[0], [1, 0.9622642])
    close(roll_out([A2, A1])[0, 0], [0.46875, 0.26875, 0.2625])  # the wrong order
    soft_maps = dense_roll_out(matrix[0], P, [0, 1], prefix=1)
    close(soft_maps[0], [0.498125, 0.3574107])
    close(soft_maps[1], [0.360625, 0.555625])
    hard = dense_roll_out(matrix[0], torch.tensor([[0.9, 0.1], [0.4, 0.6]]), [0, 1], prefix=1, mode="hard")
    close(hard[0], [0.60125, 0.20875])
    close(hard[1], [0.3125, 0.625])


def test_rows() -> None:
    matrix = roll_out([soft(2, 3, 6, 6), soft(2, 3, 6, 6, seed=1)])
    torch.testing.assert_close(read(matrix, "distillation", prefix=2), matrix[:, 1, 2:])
    torch.testing.assert_close(read(matrix, "both", prefix=2), matrix[:, :2, 2:].mean(1))
    torch.testing.assert_close(read(matrix, "mean"), matrix.mean(1))
    weights = soft(2, 4)
    torch.testing.assert_close(
        read(matrix, pooling=weights, prefix=2), torch.einsum("bp,bpq->bq", weights, matrix[:, 2:])[:, 2:]
    )


def test_properties() -> None:
    eye, even = torch.eye(5).expand(1, 2, 5, 5), torch.full((1, 2, 5, 5), 0.2)
    torch.testing.assert_close(roll_out([eye, eye])[0], torch.eye(5))
    torch.testing.assert_close(roll_out([even])[0], 0.5 * torch.eye(5) + 0.1)
    layers = [soft(2, 3, 5, 5, seed=seed) for seed in range(12)]
    matrix = roll_out(layers)
    torch.testing.assert_close(matrix.sum(-1), torch.ones(2, 5))
    torch.testing.assert_close(roll_out([one[:, [2, 0, 1]] for one in layers]), matrix)
    torch.testing.assert_close(roll_out(layers, start_layer=3), roll_out(layers[2:]))
    for fusion in ("max", "min"):
        torch.testing.assert_close(roll_out(layers, fusion=fusion).sum(-1), torch.ones(2, 5))
    assert not torch.allclose(roll_out(layers, fusion="max"), matrix)


def test_dense_properties() -> None:
    matrix, scores = roll_out([soft(1, 2, 5, 5)])[0], soft(4, 3)
    even = dense_roll_out(matrix, torch.full((4, 3), 1 / 3), [0, 2], prefix=1)
    torch.testing.assert_close(even[0], even[2])
    torch.testing.assert_close(even[0], matrix[1:, 1:].mean(0))
    louder = scores * torch.tensor([1.0, 7.0, 1.0])
    torch.testing.assert_close(
        dense_roll_out(matrix, louder, [1], prefix=1)[1], dense_roll_out(matrix, scores, [1], prefix=1)[1]
    )
    torch.testing.assert_close(dense_roll_out(torch.eye(4), scores, [1])[1], scores[:, 1] / scores[:, 1].sum())
    whole = dense_roll_out(matrix, scores, [0], prefix=1, renormalise=True)[0]
    assert whole.sum() == pytest.approx(1)
    assert dense_roll_out(matrix, scores, [0], prefix=1)[0].sum() < 1
    absent = dense_roll_out(torch.eye(2), torch.tensor([[0.9, 0.1], [0.8, 0.2]]), [0, 1], mode="hard")
    assert set(absent) == {0}


def test_scales() -> None:
    close(min_max(torch.tensor([[1.0, 3.0, 2.0], [4.0, 4.0, 4.0]])), [[0, 1, 0.5], [0, 0, 0]])


def test_least_weights_are_discarded_by_row() -> None:
    """The lowest half of the fused weights goes, but for the class column; rows are divided, not columns."""
    weights = torch.tensor([[0.05, 0.05, 0.9], [0.1, 0.6, 0.3], [0.2, 0.15, 0.65]])
    found = roll_out([weights[None, None]], discard_ratio=0.5, prefix=1)[0]  # 4 of 9: .05, .05, .1, .15
    kept = torch.tensor([[0.05, 0, 0.9], [0.1, 0.6, 0.3], [0.2, 0, 0.65]]) + torch.eye(3)
    torch.testing.assert_close(found, kept / kept.sum(1, keepdim=True))


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str) -> None:
    """Weights are those that the network uses: the output is the same, and nothing of the network is changed."""
    model, images = network(name)
    with torch.no_grad():
        before = model(images)
        with watch(attention_layers(model, images.shape[-2:]), lambda layer, weights: None):
            watched = model(images)
    torch.testing.assert_close(watched, before, atol=1e-5, rtol=1e-5)
    found = attention_rollout(model, images, [[1], [4]])
    with torch.no_grad():
        assert torch.equal(model(images), before)
    for one, logits, label in zip(found, before, (1, 4), strict=True):
        torch.testing.assert_close(torch.tensor(one.probabilities), logits.softmax(-1).double(), atol=1e-5, rtol=1e-4)
        assert set(one.dense) == {label, int(logits.argmax())}
        lost = 1 if model.__dict__.get("num_prefix_tokens") else 0
        assert one.ordinary.sum() < 1 if lost else one.ordinary.sum() == pytest.approx(1, abs=1e-5)
        assert one.ordinary.std() > 0


@pytest.mark.parametrize("name", ["gab", "distilled"])
def test_against_the_definition(name: str) -> None:
    """Weights by hand from q, k and the bias, then the equations."""
    model, images = network(name)
    seen: dict[str, Tensor] = {}
    with torch.no_grad():
        hooks = [
            block.attn.register_forward_pre_hook(lambda module, given, key=key: seen.__setitem__(key, given[0]))
            for key, block in enumerate(model.blocks)
        ]
        model(images[:1])
        for hook in hooks:
            hook.remove()
        product = torch.eye(seen[0].shape[1])
        for key, block in enumerate(model.blocks):
            attn, x = block.attn, seen[key]
            q, k, _ = attn.qkv(x).view(1, x.shape[1], 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
            scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
            if hasattr(attn, "get_bias"):
                bias = attn.get_bias(torch.float32)
                scores = scores if bias is None else scores + bias
            fused = scores.softmax(-1).mean(1)[0]
            mixed = fused + torch.eye(len(fused))
            product = mixed / mixed.sum(1, keepdim=True) @ product
    row = product.mean(0) if name == "gab" else product[0, 2:]
    found = attention_rollout(model, images[:1], [[]])[0]
    torch.testing.assert_close(torch.tensor(found.ordinary).flatten().float(), row, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ["swin", "swinv2", "padded"])
def test_windows_against_one_matrix(name: str) -> None:
    """Scattered by rolling and partitioning the numbers of the patches, as the sheet says, then multiplied."""
    model, images = network(name)
    layers = attention_layers(model, images.shape[-2:])
    taken: list[Tensor] = []
    with torch.no_grad(), watch(layers, lambda layer, weights: taken.append(weights[0].mean(1))):
        model(images[:1])
    blocks = [block for stage in model.layers for block in stage.blocks]
    product, grid = None, layers[0].grid
    for block, fused in zip(blocks, taken, strict=True):
        h, w = block.input_resolution
        if (h, w) != grid:
            pool = torch.zeros(h * w, grid[0] * grid[1])
            for patch in range(grid[0] * grid[1]):
                pool[patch // grid[1] // 2 * w + patch % grid[1] // 2, patch] = 1
            product, grid = pool / pool.sum(1, keepdim=True) @ product, (h, w)
        down, across = block.window_size
        numbers = torch.arange(1.0, h * w + 1).view(h, w).roll([-s for s in block.shift_size], (0, 1))
        numbers = nn.functional.pad(numbers, (0, -w % across, 0, -h % down))
        rows, columns = numbers.shape
        windows = numbers.view(rows // down, down, columns // across, across).transpose(1, 2).reshape(-1, down * across)
        whole = torch.zeros(h * w + 1, h * w + 1)
        for window, weights in zip(windows.long(), fused, strict=True):
            whole[window[:, None], window] = weights
        mixed = whole[1:, 1:] + torch.eye(h * w)
        mixed = mixed / mixed.sum(1, keepdim=True)
        product = mixed if product is None else mixed @ product
    found = attention_rollout(model, images[:1], [[]])[0].ordinary
    torch.testing.assert_close(torch.tensor(found).flatten().float(), product.mean(0), atol=1e-6, rtol=1e-4)


def test_sequence_pooling_weighs_rows() -> None:
    model, images = network("cvt")
    with torch.no_grad():
        model.attention_pool.weight.mul_(20)
        weights = model.attention_pool(model.forward_features(images[:1])).softmax(1)[..., 0]
    found, even = (attention_rollout(model, images[:1], [[]], row=row)[0].ordinary for row in ("auto", "mean"))
    assert abs(found - even).max() > 1e-4
    layers: list[Tensor] = []
    with torch.no_grad(), watch(attention_layers(model, (32, 32)), lambda layer, one: layers.append(one[:, 0])):
        model(images[:1])
    wanted = read(roll_out(layers), pooling=weights)[0]
    torch.testing.assert_close(torch.tensor(found).flatten().float(), wanted, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ["gab", "lape", "distilled", "cvt", "swin"])
def test_the_head_on_one_patch(name: str) -> None:
    """Where all patches (and prefix tokens) are alike, the head says of each what it says of the image."""
    model, images = network(name)
    with torch.no_grad():
        features = model.forward_features(images)
        alike = features[:, :1].expand_as(features) if features.ndim == 3 else features[:, :1, :1].expand_as(features)
        prefix = getattr(model, "num_prefix_tokens", 0)
        tokens = alike[:, prefix:] if features.ndim == 3 else alike.flatten(1, 2)
        found = patch_logits(model, tokens, prefix, features.ndim == 4)
        whole = model.forward_head(alike)
    torch.testing.assert_close(found, whole[:, None].expand_as(found), atol=1e-5, rtol=1e-4)


BAD = {
    "class 5 is not among the 5": {"classes": [[5]]},
    "row=distillation: this network has 0 tokens": {"row": "distillation"},
    "row=last is unknown": {"row": "last"},
    "fusion=sum is unknown": {"fusion": "sum"},
    "mode=best is unknown": {"mode": "best"},
    "discard_ratio=1: give a share": {"discard_ratio": 1.0},
    "start_layer=0: layers count from 1": {"start_layer": 0},
    "start_layer=4 lies behind the last of 3 layers": {"start_layer": 4},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message: str) -> None:
    model, images = network("gab")
    options = {"classes": [[]], **BAD[message]}
    with pytest.raises(UserError, match=message):
        attention_rollout(model, images[:1], options.pop("classes"), **options)


@pytest.mark.parametrize(
    ("name", "message"),
    [("resnet18", "ResNet has no attention weights .*no transformer"), ("xcit_nano_12_p16_224", "on which grid Xcit")],
)
def test_networks_without_attention_among_patches(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        attention_rollout(timm.create_model(name), torch.zeros(1, 3, 32, 32), [[]])


def test_performers_have_no_weights() -> None:
    model, _ = network("vitae")
    with pytest.raises(UserError, match="Performers have linear attention"):
        attention_layers(model.patch_embed, (32, 32))


def test_what_is_no_attention_among_the_tokens_is_refused() -> None:
    model, images = network("lape")
    model.blocks[1].attn.attn_drop.register_forward_pre_hook(lambda module, given: (2 * given[0],))
    with pytest.raises(UserError, match=r"blocks\.1\.attn weights something else than 17 tokens"):
        attention_rollout(model, images, [[], []])


def test_heads_inside_of_the_batch_are_refused() -> None:
    """SAM's weights are (B H, N, N)."""
    model = timm.create_model("samvit_base_patch16_224", img_size=224, depth=1)
    with pytest.raises(UserError, match="weights something else than 196 tokens"):
        attention_rollout(model, torch.randn(1, 3, 224, 224), [[]])


def test_merging_keeps_rows() -> None:
    product = RollOut()
    product.add(soft(1, 2, 15, 15))
    product.merge((3, 5))
    assert product.matrix is not None
    assert product.matrix.shape == (1, 6, 15)
    torch.testing.assert_close(product.matrix.sum(-1), torch.ones(1, 6))

import pytest
import timm
import torch
from timm.layers import DropPath as TimmDropPath
from torch import nn

from gab.models.stochastic import BiasDropout, DropPath, Keys, attach_keys

CPU = torch.device("cpu")


class Branches(nn.Module):
    """Two drop-paths and two bias dropouts, so that layers can be told apart."""

    def __init__(self, p: float = 0.4):
        super().__init__()
        self.paths = nn.ModuleList([DropPath(p), DropPath(p)])
        self.biases = nn.ModuleList([BiasDropout(p), BiasDropout(p)])

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x (B, C): what remains of ones, (layers, B, C) and (layers, 16, 16)."""
        return (
            torch.stack([path(torch.ones_like(x)) for path in self.paths]),
            torch.stack([bias(torch.ones(16, 16)) for bias in self.biases]),
        )


def drawn(model: nn.Module, keys: Keys, indices: torch.Tensor, epoch: int = 0, step: int = 0):
    keys.set(epoch, step, indices)
    return model(torch.zeros(len(indices), 2))


def test_drop_path_belongs_to_the_sample() -> None:
    model = Branches()
    keys = attach_keys(model, 0, CPU)
    indices = torch.randperm(1000)[:64]
    whole = drawn(model, keys, indices)[0]
    parts = [drawn(model, keys, part)[0] for part in indices.split([16, 16, 24, 8])]
    assert torch.equal(whole, torch.cat(parts, dim=1))
    elsewhere = Branches()  # in another process
    assert torch.equal(whole, drawn(elsewhere, attach_keys(elsewhere, 0, CPU), indices)[0])


def test_drop_path_differs_by_layer_epoch_and_seed() -> None:
    model, indices = Branches(), torch.arange(256)
    keys = attach_keys(model, 0, CPU)
    first, second = drawn(model, keys, indices)[0]
    later = drawn(model, keys, indices, epoch=1)[0]
    other = drawn(model, attach_keys(model, 1, CPU), indices)[0]
    for differs in (second, later[0], other[0]):
        share = (first == differs).float().mean()
        assert 0.35 < share < 0.7  # 0.6^2 + 0.4^2 = 0.52 by chance


def test_drop_path_rate_and_scale() -> None:
    model = Branches(p=0.3)
    paths = drawn(model, attach_keys(model, 0, CPU), torch.arange(20_000))[0]
    assert torch.equal(paths.unique(), torch.tensor([0, 1 / 0.7]))
    assert torch.equal(paths[..., 0], paths[..., 1])  # a sample is dropped whole
    assert abs((paths == 0).float().mean() - 0.3) < 0.01


def test_bias_dropout_belongs_to_the_step() -> None:
    model = Branches()
    keys = attach_keys(model, 0, CPU)
    first, second = drawn(model, keys, torch.arange(8), step=5)[1]
    assert torch.equal(first, drawn(model, keys, torch.arange(8, 40), epoch=3, step=5)[1][0])
    for differs in (second, drawn(model, keys, torch.arange(8), step=6)[1][0]):
        assert 0.35 < (first == differs).float().mean() < 0.7
    assert abs((first == 0).float().mean() - 0.4) < 0.12
    assert torch.allclose(first.max(), torch.tensor(1 / 0.6))


def test_without_keys_as_timm_and_torch() -> None:
    x = torch.randn(32, 5)
    for ours, theirs in ((DropPath(0.4), TimmDropPath(0.4)), (BiasDropout(0.4), nn.Dropout(0.4))):
        results = []
        for layer in (ours, theirs):
            torch.manual_seed(3)
            results.append(layer.train()(x))
        assert torch.equal(*results)
        assert (results[0] == 0).any()


@pytest.mark.parametrize("layer", [DropPath, BiasDropout])
def test_identity_in_evaluation_and_at_rate_0(layer: type[nn.Module]) -> None:
    x = torch.randn(64, 3)
    assert layer(0.9).eval()(x) is x
    assert layer(0.0).train()(x) is x


def test_timm_drop_paths_are_exchanged() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=3, drop_path_rate=0.6).train()
    rates = [m.drop_prob for m in model.modules() if isinstance(m, TimmDropPath)]
    keys = attach_keys(model, 0, CPU)
    assert not any(isinstance(m, TimmDropPath) for m in model.modules())
    assert [m.p for m in model.modules() if isinstance(m, DropPath)] == rates
    images = torch.randn(12, 3, 32, 32)

    def run(part: slice) -> torch.Tensor:
        keys.set(0, 0, torch.arange(12)[part])
        return model(images[part])

    with torch.no_grad():
        assert torch.allclose(run(slice(12)), torch.cat([run(slice(5)), run(slice(5, 12))]), atol=1e-5)


@pytest.mark.slow
def test_compiled_as_eager() -> None:
    """Keys are read when the graph runs, not when it is traced."""
    model, indices = Branches(), torch.arange(8)
    keys = attach_keys(model, 0, CPU)
    eager = [drawn(model, keys, indices, step=step) for step in range(3)]
    model.compile()
    compiled = [drawn(model, keys, indices, step=step) for step in range(3)]
    for expected, found in zip(eager, compiled):
        torch.testing.assert_close(found, expected)
    assert not torch.equal(eager[0][1], eager[1][1])

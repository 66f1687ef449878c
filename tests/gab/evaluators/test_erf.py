"""Effective receptive fields: against openerf, NumPy and by hand; what is refused."""

import numpy as np
import pytest
import timm
import torch
from torch import nn

import gab  # noqa: F401  (registers the models)
from gab.errors import UserError
from gab.evaluators.erf import ReceptiveField, choose_targets, effective_receptive_field
from gab.evaluators.readouts import Probe, barely_scaled, last_mlp, signs

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 5}


def network(name: str = "vit_small_patch16_224", seed: int = 0, **options) -> nn.Module:
    """A small network with norms and LayerScales as training leaves them: all channels different, none tiny."""
    torch.manual_seed(seed)
    model = timm.create_model(name, **({**SMALL, **options} if "patch16" in name else {"num_classes": 5, **options}))
    for parameter_name, parameter in model.named_parameters():
        if parameter.ndim == 1 and not parameter_name.endswith("bias"):
            nn.init.uniform_(parameter, 0.3, 1.7)
    return model.eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(10, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    return network()


def by_hand(model: nn.Module, images: torch.Tensor, token: int) -> np.ndarray:
    """Every image by itself, as the sheet says: (n, H, W)."""
    found = []
    for image in images:
        x = image[None].clone().requires_grad_()
        model.forward_features(x)[0, token].mean().backward()
        found.append(x.grad[0].double().mean(0).relu())
    return torch.stack(found).numpy()


def test_the_sheet_by_hand(vit: nn.Module, images: torch.Tensor) -> None:
    """Mean and standard error over images of the rectified gradient; the class token is no patch."""
    single = by_hand(vit, images, token=1 + 1 * 4 + 1)  # row and column 1 of 4 x 4, after the class token
    field = effective_receptive_field(vit, images)
    assert (field.targets, field.grid, field.count) == ([(1, 1)], (4, 4), 10)
    np.testing.assert_allclose(field.maps[0], single.mean(0), rtol=1e-4, atol=1e-9)
    error = single.std(0, ddof=1) / np.sqrt(10)
    np.testing.assert_allclose(field.standard_errors[0], error, rtol=1e-3, atol=1e-8)
    relative = np.sqrt((error**2).mean() / (single.mean(0) ** 2).mean())
    assert field.relative_error == pytest.approx(relative, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_relpos_small_patch16_224", {"init_values": 0.5, "class_token": False}),
        ("vit_relpos_small_patch16_gab_224", {"layer_scale": 0.5}),
        ("deit_small_distilled_patch16_224", {}),
        ("resnet18", {}),
        ("swin_tiny_patch4_window7_224", {"img_size": 32, "window_size": 2, "depths": (1, 1, 1, 1), "embed_dim": 12}),
    ],
)
def test_openerf(name: str, options: dict, images: torch.Tensor) -> None:
    """The package of the paper's first author, an image at a time, on the same networks and images."""
    openerf = pytest.importorskip("openerf.erf")
    model = network(name, **options)
    if name == "resnet18":
        images = torch.nn.functional.interpolate(images, size=96)  # maps of 3 x 3: both take the middle one
    theirs = torch.zeros(images.shape[-2:], dtype=torch.float64)
    for image in images:
        x = image[None].clone().requires_grad_()
        theirs += openerf._compute_positive_input_gradients_from_forward_features(model, x, "forward_features")
    ours = effective_receptive_field(model, images, batch_size=4).maps[0]
    np.testing.assert_allclose(ours / ours.sum(), theirs.numpy() / theirs.sum().item(), rtol=1e-3, atol=1e-8)


def test_batches_do_not_matter(images: torch.Tensor) -> None:
    """One by one, all at once, as an iterable: the same to rounding. BatchNorm and drop-path are at rest."""
    for model in (network(drop_path_rate=0.5), network("resnet18")):
        one, all_, some = (effective_receptive_field(model.train(), images, batch_size=size) for size in (1, 10, 3))
        np.testing.assert_allclose(one.maps, all_.maps, rtol=1e-4, atol=1e-9)
        np.testing.assert_allclose(some.maps, all_.maps, rtol=1e-4, atol=1e-9)
        np.testing.assert_allclose(one.standard_errors, all_.standard_errors, rtol=1e-3, atol=1e-9)
        batches = effective_receptive_field(model, iter(images.split(5)))
        np.testing.assert_allclose(batches.maps, all_.maps, rtol=1e-4, atol=1e-9)
        assert model.training


def test_the_network_is_left_as_it_was(images: torch.Tensor) -> None:
    model = network()
    model.blocks[0].train()
    model.head.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():  # as in an evaluation
        effective_receptive_field(model, images)
    assert (model.training, model.blocks[0].training, model.blocks[0].mlp.training) == (False, True, True)
    assert [p.requires_grad for p in model.parameters()] == [
        not n.startswith("head.") for n, _ in model.named_parameters()
    ]
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_targets(vit: nn.Module, images: torch.Tensor) -> None:
    """Several targets are what each is alone."""
    both = effective_receptive_field(vit, images, target=[(0, 3), (2, 1)])
    for number, target in enumerate(both.targets):
        alone = effective_receptive_field(vit, images, target=target)
        np.testing.assert_allclose(both.maps[number], alone.maps[0], rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(both.maps[0], by_hand(vit, images, token=1 + 3).mean(0), rtol=1e-4, atol=1e-9)


def test_which_patches_a_number_means() -> None:
    """The paper's: index 90 of 14 x 14, 24 of 7 x 7, 275 of 24 x 24."""
    middles = {side: choose_targets(1, (side, side))[0] for side in (14, 7, 24)}
    assert {side: row * side + column for side, (row, column) in middles.items()} == {14: 90, 7: 24, 24: 275}
    assert choose_targets(3, (14, 7)) == [(row, column) for row in (2, 6, 11) for column in (1, 3, 5)]
    assert len(choose_targets(4, (4, 4))) == len(set(choose_targets(4, (4, 4)))) == 16


def test_layers(vit: nn.Module, images: torch.Tensor) -> None:
    """By number, from the end or by name; what lies behind is not computed."""
    first = effective_receptive_field(vit, images, layer=0)
    np.testing.assert_array_equal(first.maps, effective_receptive_field(vit, images, layer=-3).maps)
    np.testing.assert_array_equal(first.maps, effective_receptive_field(vit, images, layer="blocks.0").maps)
    single = []
    for image in images:
        x = image[None].clone().requires_grad_()
        tokens = torch.cat([vit.cls_token, vit.patch_embed(x)], 1) + vit.pos_embed
        vit.blocks[0](tokens)[0, 6].mean().backward()
        single.append(x.grad[0].mean(0).relu().double())
    np.testing.assert_allclose(first.maps[0], torch.stack(single).mean(0).numpy(), rtol=1e-4, atol=1e-9)
    seen = []
    handle = vit.blocks[1].register_forward_hook(lambda *_: seen.append(1))
    effective_receptive_field(vit, images, layer=0)
    handle.remove()
    assert not seen
    stem = effective_receptive_field(vit, images, layer="patch_embed")
    assert stem.own_shares() == [1.0]  # a patch sees itself alone
    assert effective_receptive_field(vit, images, layer="patch_embed.proj").own_shares() == [1.0]
    assert effective_receptive_field(network("resnet18"), images, layer=0).grid == (8, 8)


def test_a_convolution_by_hand() -> None:
    """Ones in a 3 x 3 kernel: the field is its square, an eighth of the colours' mean each."""
    conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    nn.init.ones_(conv.weight)
    field = effective_receptive_field(conv, torch.rand(9, 3, 7, 7), target=(2, 5))
    expected = np.zeros((7, 7))
    expected[1:4, 4:7] = 1.0
    np.testing.assert_allclose(field.maps[0], expected, rtol=1e-6)
    np.testing.assert_allclose(field.standard_errors, 0, atol=1e-7)
    assert field.areas()[0] == pytest.approx({20: 2 / 49, 30: 3 / 49, 50: 5 / 49, 99: 9 / 49})


def test_readouts(vit: nn.Module, images: torch.Tensor) -> None:
    """Each says what it is, and is another map."""
    fields = {name: effective_receptive_field(vit, images, readout=name) for name in ("mean", "random", "pre_norm")}
    assert [field.measured for field in fields.values()] == [
        "channel mean, after LayerNorm", "random signs, after LayerNorm", "channel mean, not normalised"
    ]  # fmt: skip
    shares = {name: field.maps / field.maps.sum() for name, field in fields.items()}
    assert np.abs(shares["mean"] - shares["pre_norm"]).max() > 1e-5
    assert np.abs(shares["mean"] - shares["random"]).max() > 1e-5
    last = effective_receptive_field(vit, images, layer=-1)
    np.testing.assert_allclose(fields["pre_norm"].maps, last.maps, rtol=1e-5, atol=1e-10)
    relpos = network("vit_relpos_small_patch16_224", init_values=0.5)
    both = [effective_receptive_field(relpos, images, readout=name) for name in ("mean", "pre_norm")]
    np.testing.assert_array_equal(both[0].maps, both[1].maps)  # it is normalised after pooling
    assert both[0].measured == both[1].measured == "channel mean, not normalised"


def test_random_signs_are_fixed() -> None:
    assert signs(12).tolist() == signs(400)[:12].tolist()
    assert set(signs(400).tolist()) == {-1.0, 1.0}
    assert abs(signs(4000).mean()) < 0.05


def test_until_it_is_enough(vit: nn.Module, images: torch.Tensor) -> None:
    whole = effective_receptive_field(vit, images, batch_size=1)
    errors = [effective_receptive_field(vit, images[:n], batch_size=1).relative_error for n in range(2, 11)]
    enough = next(n for n, error in enumerate(errors, start=2) if error < errors[4] * 1.001)
    stopped = effective_receptive_field(vit, images, batch_size=1, until=errors[4] * 1.001)
    assert stopped.count == enough < whole.count


def test_resume(vit: nn.Module, images: torch.Tensor, tmp_path) -> None:
    """Stopped after any number of images and gone on with from a file: the same bits where batches are the same."""
    whole = effective_receptive_field(vit, images, batch_size=2)
    begun = effective_receptive_field(vit, images[:4], batch_size=2)
    torch.save(begun.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    ended = effective_receptive_field(vit, images, batch_size=2, state=state)
    assert ended.count == 10
    np.testing.assert_array_equal(ended.maps, whole.maps)
    np.testing.assert_array_equal(ended.standard_errors, whole.standard_errors)
    again = effective_receptive_field(vit, images, batch_size=4, state=ended.state_dict())
    np.testing.assert_array_equal(again.maps, whole.maps)
    uneven = effective_receptive_field(vit, images, batch_size=3, state=state)
    np.testing.assert_allclose(uneven.maps, whole.maps, rtol=1e-5, atol=1e-10)
    with pytest.raises(UserError, match=r"another one \(targets \[\[1, 1\]\] -> \[\[0, 0\]\]\): begin a new file"):
        effective_receptive_field(vit, images, target=(0, 0), state=state)


def test_merging_is_adding(vit: nn.Module, images: torch.Tensor) -> None:
    whole, left, right = (effective_receptive_field(vit, part) for part in (images, images[:3], images[3:]))
    left.merge(right)
    assert left.count == 10
    np.testing.assert_allclose(left.maps, whole.maps, rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(left.standard_errors, whole.standard_errors, rtol=1e-3, atol=1e-9)


def test_trap_of_the_last_norm(images: torch.Tensor) -> None:
    """The mean after a LayerNorm with even weights is a constant: its gradient is round-off."""
    torch.manual_seed(0)
    untrained = timm.create_model("vit_small_patch16_224", **SMALL).eval()
    assert by_hand(untrained, images[:1], 6).max() < 1e-6
    with pytest.raises(UserError, match=r"ends in a LayerNorm whose weights are all alike.*readout=pre_norm"):
        effective_receptive_field(untrained, images)
    for readout in ("random", "pre_norm"):
        assert effective_receptive_field(untrained, images, readout=readout).maps.max() > 1e-5
    with pytest.raises(UserError, match=r"^norm ends in a LayerNorm"):
        effective_receptive_field(untrained, images, layer="norm")


def test_trap_of_layer_scale(images: torch.Tensor) -> None:
    """An untrained network of timm's relpos kind sees little more than the patch itself, and says so."""
    torch.manual_seed(0)
    untrained = timm.create_model("vit_relpos_small_patch16_224", **SMALL).eval()
    field = effective_receptive_field(untrained, images)
    assert field.own_shares()[0] > 0.999
    [note] = field.notes
    assert note.startswith("LayerScale is at most 1e-06 in this network")
    assert not effective_receptive_field(network("vit_relpos_small_patch16_224", init_values=1.0), images).notes
    for name in ("convnext_atto", "edgenext_xx_small", "cait_xxs24_224"):
        assert barely_scaled(timm.create_model(name)) is not None
    for name in ("xcit_nano_12_p16_224", "resnet18"):
        assert barely_scaled(timm.create_model(name)) is None


class Broken(nn.Module):
    """Loses the gradient, the grid or the numbers."""

    def __init__(self, how: str):
        super().__init__()
        self.how, self.conv = how, nn.Conv2d(3, 4, 8, stride=8)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        if self.how == "detached":
            return x.detach()
        if self.how == "constant":
            return torch.zeros_like(x, requires_grad=True) * 1.0
        return x.mean((2, 3)) if self.how == "pooled" else x * torch.nan


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("detached", "no gradient of channel mean, not normalised reaches the images: choose another layer"),
        ("constant", "no gradient of"),
        ("nan", "is not finite: the weights or the images hold NaN"),
        ("pooled", r"of shape \(1, 4\), in which there is no grid of patches"),
    ],
)
def test_broken_networks(how: str, said: str, images: torch.Tensor) -> None:
    with pytest.raises(UserError, match=said):
        effective_receptive_field(Broken(how), images)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target": (4, 0)}, r"target=\(4, 0\) lies outside of the grid of 4 x 4 patches: give a row from 0 to 3"),
        ({"target": (-1, 0)}, "lies outside"),
        ({"target": 5}, "target=5: give 1 to 4 patches"),
        ({"target": (1, 2, 3)}, r"give \(row, column\)"),
        ({"target": []}, r"give \(row, column\)"),
        ({"target": (1.5, 2)}, r"give \(row, column\)"),
        ({"layer": 3}, r"layer=3 is no module.*\(blocks\.0 to blocks\.2, numbers 0 to 2\)"),
        ({"layer": "block.1"}, r"layer=block\.1 is no module"),
        ({"layer": "head"}, "there is no grid of patches"),
        ({"layer": "blocks.1.drop_path9"}, "is no module"),
        ({"readout": "median"}, "readout=median is unknown"),
        ({"readout": "pre_norm", "layer": 1}, "leave out layer"),
    ],
)
def test_refused(options: dict, said: str, vit: nn.Module, images: torch.Tensor) -> None:
    with pytest.raises(UserError, match=said):
        effective_receptive_field(vit, images, **options)


def test_too_few_images(vit: nn.Module, images: torch.Tensor) -> None:
    field = effective_receptive_field(vit, images[:7])
    with pytest.raises(UserError, match="7 images are too few to fit a Gaussian to their field: give 8 or more"):
        field.fit()
    with pytest.raises(UserError, match="needs images, and there are none"):
        effective_receptive_field(vit, [])
    assert np.isnan(effective_receptive_field(vit, images[:1]).relative_error)


def test_probe_of_a_wide_image() -> None:
    """A grid that is not square."""
    model = network(img_size=(32, 64))
    assert Probe(model)(torch.zeros(1, 3, 32, 64)).shape == (1, 4, 8)
    field = effective_receptive_field(model, torch.randn(2, 3, 32, 64))
    assert (field.targets, field.centres()) == ([(1, 3)], [(11.5, 27.5)])


class Gives(nn.Module):
    """A network whose features are of a given shape; the number of channels is 5."""

    def __init__(self, *shape: int, **attributes):
        super().__init__()
        self.shape = shape
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return torch.arange(float(np.prod(self.shape))).view(self.shape)


@pytest.mark.parametrize(
    ("shape", "attributes", "size", "grid"),
    [
        ((2, 5, 4, 4), {}, (32, 32), (4, 4)),
        ((2, 4, 4, 5), {"output_fmt": "NHWC"}, (32, 32), (4, 4)),  # stated, though nobody has a patch_embed
        ((2, 4, 4, 7), {}, (32, 32), (4, 4)),  # not stated, as of blocks in GC-ViT: no image is 4 x 7
        ((2, 5, 3, 5), {}, (33, 65), (3, 5)),  # rounded up by padding
        ((2, 1, 1, 5), {}, (32, 32), (1, 1)),
        ((2, 16, 5), {}, (32, 32), (4, 4)),
        ((2, 18, 5), {"num_prefix_tokens": 2}, (32, 32), (4, 4)),
        ((2, 8, 5), {}, (32, 64), (2, 4)),
    ],
)
def test_the_grid_has_the_shape_of_the_image(shape: tuple, attributes: dict, size: tuple, grid: tuple) -> None:
    probe = Probe(Gives(*shape, **attributes))
    assert probe.grid_of(probe._features(torch.zeros(2, 3, *size)), torch.zeros(2, 3, *size)).shape[:3] == (2, *grid)


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((2, 1, 5), (32, 32)),  # a class token, as PiT gives
        ((32, 16, 5), (32, 32)),  # tokens inside of each patch, as in TNT; of each window
        ((32, 5, 4, 4), (32, 32)),
        ((2, 16, 5), (32, 64)),  # the tokens of a square, and a wide image
        ((2, 12, 5), (32, 32)),
        ((2, 5, 7, 3), (32, 32)),
    ],
)
def test_what_has_not_the_shape_of_the_image_is_no_grid(shape: tuple, size: tuple) -> None:
    with pytest.raises(UserError, match=r"of shape .*, in which there is no grid of patches: choose a layer"):
        Probe(Gives(*shape))(torch.zeros(2, 3, *size))


def test_networks_of_timm_with_pooling_and_windows() -> None:
    pit = timm.create_model("pit_ti_224")
    with pytest.raises(UserError, match=r"of shape \(1, 1, 256\), in which there is no grid"):
        Probe(pit)(torch.zeros(1, 3, 224, 224))
    hiera = timm.create_model("hiera_tiny_224")
    assert Probe(hiera)(torch.zeros(1, 3, 224, 224)).shape == (1, 7, 7)
    with pytest.raises(UserError, match=r"layer=blocks.0 is of shape \(1, 3136, 96\), in which there is no grid"):
        Probe(hiera, layer=0)(torch.zeros(1, 3, 224, 224))  # unit by unit, not row by row
    gcvit = timm.create_model("gcvit_xxtiny")
    assert Probe(gcvit, layer=-1)(torch.zeros(1, 3, 224, 224)).shape == (1, 7, 7)


def test_an_empty_state_is_a_field() -> None:
    assert ReceptiveField("x", (2, 2), [(0, 0)], (4, 4)).state_dict()["count"] == 0


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_relpos_small_patch16_224", {"init_values": 0.5}),
        ("vit_relpos_small_patch16_gab_224", {"layer_scale": 0.5}),
        ("deit_small_distilled_patch16_224", {}),
        ("deit_tiny_patch16_life_224", {"layer_scale": 0.5}),
    ],
)
def test_a_plain_vit_computes_its_last_mlp_for_the_target_alone(name: str, options: dict, images: torch.Tensor) -> None:
    """With the numbers of all tokens, in any place; several targets need them all."""
    model = network(name, **options)
    seen: list[int] = []
    model.blocks[-1].mlp.fc1.register_forward_hook(lambda _, given, __: seen.append(given[0].shape[1]))
    fast = {place: effective_receptive_field(model, images, target=place).maps[0] for place in ((0, 0), (0, 1))}
    assert 1 in seen
    seen.clear()
    both = effective_receptive_field(model, images, target=list(fast)).maps
    assert 1 not in seen
    for one, map_ in zip(both, fast.values()):
        np.testing.assert_allclose(map_, one, rtol=1e-5, atol=1e-6 * one.max())


def test_other_networks_mix_tokens_later() -> None:
    for name in ("resnet18", "swin_tiny_patch4_window7_224"):
        assert last_mlp(timm.create_model(name)) is None

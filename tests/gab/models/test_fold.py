"""Folded networks, and networks of timm itself, give the outputs of those that they come from."""

import copy
import subprocess
import sys

import pytest
import timm
import torch
from torch import nn

from gab.config import GaussianConfig
from gab.errors import UserError
from gab.export import save, save_onnx
from gab.models.fold import fold
from gab.models.gaussian import Gaussian
from gab.models.plain import bias_table, to_timm
from gab.models.swin import SwinTransformer
from gab.models.vit import VisionTransformer

IMAGES = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))
SHAPE = (32, 48)
CLASS_BIASES = ("zero", "row_mean", "learned")


def shaken(model):
    """With noise on every parameter, so that each counts."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith("sigma"):
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def gaussian(**changes):
    return GaussianConfig(sigma=1.5, **changes)


def difference(model, other, images=IMAGES):
    """Between the logits, relative to the largest."""
    with torch.no_grad():
        expected = model(images)
        return ((other(images) - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("join", ["add", "shared", "unshared", "lape", "lape_sharing"])
@pytest.mark.parametrize("class_bias", CLASS_BIASES)
def test_fold_keeps_outputs(deit, join, class_bias):
    cfg = deit(join=join, gab=True, rel_pos="mlp", life=True, gaussian=gaussian(class_bias=class_bias, per_head=True))
    model = shaken(VisionTransformer(cfg, SHAPE, num_classes=5, seed=0))
    folded = fold(copy.deepcopy(model))
    assert difference(model, folded) < 1e-6
    assert not any(isinstance(part, Gaussian) for part in folded.modules())
    left = {name for name, _ in folded.named_parameters()}
    assert not any(part in name for name in left for part in ("pos_embed", "gaussian", "rel_pos", "join"))
    assert folded.blocks[1].attn.folded.shape == (1, 3, 25, 25)
    again = copy.deepcopy(folded)
    again.load_state_dict(folded.state_dict())
    taken, expected = (m.forward_intermediates(IMAGES, indices=[0], intermediates_only=True) for m in (again, model))
    torch.testing.assert_close(taken, expected)


def test_fold_keeps_outputs_of_swin(swin):
    model = shaken(SwinTransformer(swin(), 64, num_classes=5, seed=0))
    folded = fold(copy.deepcopy(model))
    images = torch.randn(2, 3, 64, 64)
    assert difference(model, folded, images) < 1e-6
    assert not any("gaussian" in name or "table" in name for name, _ in folded.named_parameters())
    with pytest.raises(UserError, match="call set_input_size before fold"):
        folded.set_input_size(128)


def test_folded_in_training_mode_too(relpos):
    """The dropout of the relative MLP does not get into the constant."""
    model = shaken(VisionTransformer(relpos(gab=True), SHAPE, num_classes=5, seed=0))
    folded = fold(copy.deepcopy(model).train())
    assert difference(model, folded) < 1e-6
    assert not folded.training
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    with pytest.raises(UserError, match="folded for images of one size"):
        folded.set_input_size(64)


def test_fold_is_no_change_where_nothing_can_be_folded():
    model = timm.create_model("resnet10t").eval()
    assert difference(model, fold(copy.deepcopy(model))) == 0


BEIT = {"position": "learnable", "pool": "token", "class_token": True, "qkv_bias": True}
PLAIN = {
    "vit": ("VisionTransformerRelPos", {"gab": True}),
    "vit_no_layer_scale": ("VisionTransformerRelPos", {"gab": True, "layer_scale": None, "rel_pos": "bias"}),
    "vit_class_token": ("VisionTransformerRelPos", {"gab": True, "class_token": True, "pool": "token"}),
    "vit_table": ("VisionTransformerRelPos", {"rel_pos": "table", "class_token": True}),
    "vit_class_bias": (
        "VisionTransformerRelPos",
        {"gab": True, "class_token": True, "pool": "avg", "gaussian": gaussian(class_bias="learned", per_head=True)},
    ),
    "deit_gab": ("Beit", {"gab": True, **BEIT}),
    "deit_gab_avg": ("Beit", {"gab": True, **BEIT, "pool": "avg", "position": "sincos_2d", "layer_scale": None}),
    "deit_no_bias": ("VisionTransformer", {"rel_pos": "none", **BEIT}),
    "deit_distilled": ("VisionTransformerDistilled", {"rel_pos": "none", **BEIT, "distillation_token": True}),
}


@pytest.mark.parametrize("name", PLAIN)
def test_to_timm(relpos, name):
    kind, changes = PLAIN[name]
    model = shaken(VisionTransformer(relpos(**{"gaussian": gaussian(), **changes}), SHAPE, num_classes=5, seed=0))
    plain = to_timm(model.train())
    assert model.training
    assert type(plain).__name__ == kind
    assert type(plain).__module__.startswith("timm.")
    assert difference(model.eval(), plain) < 2e-6


def test_swin_to_timm(swin):
    model = shaken(SwinTransformer(swin(gaussian=gaussian(per_head=True)), 64, num_classes=5, seed=0))
    plain = to_timm(model)
    assert type(plain) is timm.models.SwinTransformer
    assert difference(model, plain, torch.randn(2, 3, 64, 64)) < 1e-6
    without = shaken(SwinTransformer(swin(gab=False, rel_pos="none"), 64, num_classes=5, seed=0))
    assert difference(without, to_timm(without), torch.randn(2, 3, 64, 64)) < 1e-6


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gab": True, "gaussian": gaussian(class_bias="row_mean")}, "class_bias=row_mean"),
        ({"rel_pos": "table_norm"}, "rel_pos=table_norm"),
        ({"join": "lape"}, "join positions like lape"),
        ({"join": "shared"}, "join positions like shared"),
        ({"life": True}, "no LIFE"),
        ({"gab": True, "distillation_token": True}, "with a distillation token"),
        ({"gab": True, "class_token": False, "pool": "avg"}, "without a class token"),
        ({"position": "none", "distillation_token": True}, "no place for pos_embed"),
    ],
)
def test_what_timm_has_no_place_for_is_refused(deit, changes, said):
    model = shaken(VisionTransformer(deit(**changes), SHAPE, num_classes=5, seed=0))
    with pytest.raises(UserError, match=f"{said}.*--onnx"):
        to_timm(model)


def test_a_table_is_by_offset():
    """Both corners of a grid of 1 x 2: the bias of (0, 1) and that of (1, 0) are of other offsets."""
    bias = torch.tensor([[[[1.0, 2.0], [3.0, 1.0]]]])
    assert bias_table(bias, (1, 2), 2).tolist() == [[2, 2], [1, 1], [3, 3]]
    bias[0, 0, 1, 1] = 1.001
    with pytest.raises(UserError, match="depends on more"):
        bias_table(bias, (1, 2), 2)


LOAD = """
import sys, timm, torch
for name in sys.argv[1:]:
    model = timm.create_model(f"local-dir:{name}", pretrained=True).eval()
    images, logits = torch.load(f"{name}.pt")
    print((model(images) - logits).abs().max().item())
assert not any(name.partition(".")[0] == "gab" for name in sys.modules)
"""


def test_timm_alone_loads_it(relpos, swin, tmp_path):
    models = {name: VisionTransformer(relpos(**PLAIN[name][1]), SHAPE) for name in ("vit_class_token", "deit_gab")}
    for name, model in (models | {"swin": SwinTransformer(swin(), 64)}).items():
        shaken(model)
        images = IMAGES if name in models else torch.randn(2, 3, 64, 64)
        transform = {"input_size": (3, *images.shape[2:])}
        save(to_timm(model), tmp_path / name, transform, [str(i) for i in range(1000)])
        torch.save((images, model(images).detach()), tmp_path / f"{name}.pt")
    command = [sys.executable, "-c", LOAD, *models, "swin"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert max(map(float, done.stdout.split())) < 1e-5
    assert len(done.stdout.split()) == 3


@pytest.mark.parametrize("folded", [False, True])
def test_torch_export(deit, folded):
    model = shaken(VisionTransformer(deit(gab=True, join="lape", life=True), SHAPE, num_classes=5, seed=0))
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(fold(model) if folded else model, (IMAGES,), dynamic_shapes=(batch,))
    images = torch.cat((IMAGES, IMAGES[:1]))
    assert torch.allclose(program.module()(images), model(images), atol=1e-6)


def test_onnx_of_everything_together(deit, tmp_path):
    pytest.importorskip("onnxruntime")
    cfg = deit(gab=True, join="lape", life=True, gaussian=gaussian(class_bias="row_mean"))
    model = shaken(VisionTransformer(cfg, 32, num_classes=5, seed=0))
    assert save_onnx(model, tmp_path / "model.onnx", 32) < 1e-5
    assert model.join.norms[0].weight.requires_grad  # a copy was folded
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


class Quotient(nn.Module):
    """Like a Performer's, where an epsilon of 1e-8 decides."""

    def forward(self, x):
        return (x / (x + 1e-8)).flatten(1)


def test_onnx_keeps_small_summands(tmp_path):
    """The exporter's own optimiser drops them."""
    runtime = pytest.importorskip("onnxruntime")
    save_onnx(Quotient(), tmp_path / "model.onnx", 2)
    images = torch.full((1, 3, 2, 2), 1e-8)
    [logits] = runtime.InferenceSession(tmp_path / "model.onnx").run(None, {"images": images.numpy()})
    assert torch.allclose(torch.from_numpy(logits), torch.full((1, 12), 0.5))

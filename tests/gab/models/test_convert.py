from typing import Any

import pytest
import timm
import torch
from timm.models import swin_transformer, swin_transformer_v2
from torch import Tensor, nn

import gab  # noqa: F401  # registers the networks
from gab.errors import UserError
from gab.models.convert import convert, from_official, infer
from gab.models.position import sincos_1d, sincos_2d
from tests import official_names
from tests.golden_noise import fill, images, load, noise

LAPE, LIFE = "deit_tiny_patch16_lape_224", "deit_tiny_patch16_life_224"
GOLDEN: list[tuple[str, str, dict[str, Any]]] = [  # file, name, and what is inferred
    ("lape_deit_tiny_learnable_LaPE", LAPE, {}),
    ("lape_deit_tiny_learnable_basic", LAPE, {"join": "add"}),
    ("lape_deit_tiny_learnable_basic", LIFE, {"life": False}),
    ("lape_deit_tiny_learnable_basic", "deit_tiny_patch16_224", {}),  # timm's own
    ("life_deit_tiny_patch16_224_ms", LIFE, {"num_classes": 100}),
    ("life_deit_tiny_patch4_32_ms", "deit_tiny_patch4_life_32", {"num_classes": 100}),
    ("life_deit_tiny_patch4_32_ms", LIFE, {"num_classes": 100, "patch_size": 4, "img_size": 32}),
    ("vitae_ViTAE_basic_Tiny", "vitae_tiny", {}),
    ("cct_vit_7_4_32", "vit_lite_7_4_32", {}),
]
TOLERANCE = 2e-5


def official(file: str) -> dict[str, Tensor]:
    return fill(load(file)["state_dict_keys"])


def build(state_dict: dict, name: str, **options) -> nn.Module:
    """The network with the converted weights, loaded as a user would."""
    found = convert(state_dict, name, **options)
    model = timm.create_model(name, **found.options)
    model.load_state_dict(found.weights, strict=True)
    return model.eval()


@torch.no_grad()
def miss(model: nn.Module, file: str) -> float:
    """The largest difference from the official logits."""
    golden = load(file)
    return float((model(images(golden["image_size"])) - torch.tensor(golden["logits"])).abs().max())


# -- official outputs -------------------------------------------------------------------------------------------------


def test_noise_is_that_of_the_golden_files():
    assert noise("head.bias", [1000])[:3].tolist() == pytest.approx([-0.10606077, -0.00629976, 0.04058291])
    assert float(noise("pos_embed", [1, 197, 192]).double().sum()) == pytest.approx(42.799541, abs=1e-4)
    assert float(noise("layers.0.RC.PCM.3.running_var", [64]).double().sum()) == pytest.approx(68.610357, abs=1e-4)
    assert float(images(32).double().sum()) == pytest.approx(-12.695328, abs=1e-4)


@pytest.mark.parametrize(("file", "name", "inferred"), GOLDEN)
def test_official_output(file: str, name: str, inferred: dict[str, Any]):
    state_dict = official(file)
    assert infer(state_dict, name) == inferred
    model = timm.create_model(name, **inferred)
    model.load_state_dict(from_official(state_dict, name), strict=True)
    assert sum(p.numel() for p in model.parameters()) == load(file)["parameters"]
    assert miss(model.eval(), file) < TOLERANCE


@pytest.mark.parametrize(("file", "name"), {file: name for file, name, _ in GOLDEN}.items())
def test_gradients_flow(file: str, name: str):
    model = build(official(file), name)
    model(images(load(file)["image_size"])).square().mean().backward()
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, parameter_name
            assert parameter.grad.isfinite().all(), parameter_name


def swapped(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The first two blocks change places."""
    places = {"blocks.0.": "blocks.1.", "blocks.1.": "blocks.0."}
    return {places.get(name[:9], name[:9]) + name[9:]: value for name, value in state_dict.items()}


def test_other_networks_miss_the_official_output():
    lape, small, large = "lape_deit_tiny_learnable_LaPE", "life_deit_tiny_patch4_32_ms", "life_deit_tiny_patch16_224_ms"
    assert miss(build(swapped(official(lape)), LAPE), lape) > 0.01
    assert miss(build(official(lape), LAPE, join="lape_sharing"), lape) == pytest.approx(0.29, abs=0.01)
    assert (
        miss(build(official("lape_deit_tiny_learnable_basic"), LAPE, join="shared"), "lape_deit_tiny_learnable_basic")
        > 0.01
    )
    for file, difference in ((small, 1.2e-3), (large, 4.1e-4)):
        assert miss(build(official(file), LIFE, aux_key="per_scale"), file) == pytest.approx(difference, rel=0.05)


# -- what stands around the weights -----------------------------------------------------------------------------------


@pytest.mark.parametrize("container", ["state_dict_ema", "state_dict", "model", "model_ema"])
def test_containers_and_the_prefix_of_ddp(container: str):
    bare = official("cct_vit_7_4_32")
    saved = {
        container: {f"module.{name}": value for name, value in bare.items()},
        "epoch": 3,
        "optimizer": {"state": {}},
    }
    expected = from_official(bare, "vit_lite_7_4_32")
    found = from_official(saved, "vit_lite_7_4_32")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("better", "other"), [("state_dict_ema", "state_dict"), ("model", "model_ema"), ("state_dict", "model_ema")]
)
def test_of_several_sets_the_one_that_the_paper_evaluates(better: str, other: str):
    good = official("cct_vit_7_4_32")
    saved = {other: {name: value + 1 for name, value in good.items()}, better: good, "state_dict_ema ": None}
    assert torch.equal(from_official(saved, "vit_lite_7_4_32")["head.bias"], good["classifier.fc.bias"])


@pytest.mark.parametrize("content", [{}, {"model": {}}, {"epoch": 3}, [], {"weights": {"a": torch.zeros(1)}}])
def test_no_weights(content):
    with pytest.raises(UserError, match="There are no weights to convert: give a dict of tensors by name"):
        from_official(content, LAPE)


# -- what does not fit ------------------------------------------------------------------------------------------------


def test_unknown_missing_and_misshapen_names_are_all_listed():
    state_dict = official("lape_deit_tiny_learnable_LaPE")
    state_dict["blocks.3.attn.extra"] = torch.zeros(1)
    state_dict["blocks.12.pe_norm.weight"] = torch.zeros(192)
    del state_dict["blocks.7.norm1.weight"], state_dict["blocks.2.pe_norm.bias"]
    state_dict["norm.weight"] = torch.zeros(191)
    with pytest.raises(UserError) as refused:
        from_official(state_dict, LAPE)
    assert str(refused.value) == (
        "These weights do not fit create_model('deit_tiny_patch16_lape_224'): it does not know blocks.3.attn.extra, "
        "blocks.12.pe_norm.weight; they lack join.norms.2.bias, blocks.7.norm1.weight; norm.weight is (191,) and "
        "should be (192,). Give the name and options of the network that they come from."
    )


def test_names_of_many_layers_are_listed_as_one():
    state_dict = official("cct_vit_7_4_32")
    for i in (1, 2, 4, 6):
        del state_dict[f"classifier.blocks.{i}.linear1.bias"]
    with pytest.raises(UserError, match=r"they lack blocks\.\{1,2,4,6\}\.mlp\.fc1\.bias\."):
        from_official(state_dict, "vit_lite_7_4_32")


def test_an_option_wins_over_what_the_weights_show():
    with pytest.raises(UserError, match=r"head\.weight is \(1000, 192\) and should be \(10, 192\)"):
        from_official(official("lape_deit_tiny_learnable_LaPE"), LAPE, num_classes=10)
    with pytest.raises(UserError, match=r"it does not know blocks\.\{0,1,2,3,4,5,6,7,8,9,10,11\}\.pe_norm\.weight"):
        from_official(official("lape_deit_tiny_learnable_LaPE"), LAPE, join="add")


def test_a_tensor_twice():
    state_dict = official("cct_vit_7_4_32")
    state_dict["head.bias"] = state_dict["classifier.fc.bias"]
    with pytest.raises(UserError, match=r"have head\.bias twice"):
        from_official(state_dict, "vit_lite_7_4_32")


def test_names_and_options_that_timm_does_not_know():
    state_dict = official("cct_vit_7_4_32")
    with pytest.raises(UserError, match=r"no model named 'vit_lite_7_4_23'; did you mean vit_lite_7_4_32"):
        from_official(state_dict, "vit_lite_7_4_23")
    with pytest.raises(UserError, match=r"timm cannot build vit_lite_7_4_32 with .*colour"):
        from_official(state_dict, "vit_lite_7_4_32", colour=3)


def test_counters_of_batchnorm_may_lack():
    state_dict = official("vitae_ViTAE_basic_Tiny")
    found = from_official(state_dict, "vitae_tiny")
    counter = "blocks.0.pcm.1.num_batches_tracked"
    assert found[counter].shape == ()
    assert found[counter].dtype == torch.int64
    state_dict["layers.2.NC.0.PCM.1.num_batches_tracked"] = torch.tensor(5)
    assert int(from_official(state_dict, "vitae_tiny")[counter]) == 5


# -- LaPE's DeiT with other positions, joins and tokens ----------------------------------------------------------------


def without(state_dict: dict[str, Tensor], *parts: str) -> dict[str, Tensor]:
    return {name: value for name, value in state_dict.items() if not any(part in name for part in parts)}


def test_embeddings_per_layer():
    state_dict = without(official("lape_deit_tiny_learnable_basic"), "pos_embed")
    state_dict |= {f"pos_embed{i}": noise(f"pos_embed{i}", [1, 197, 192]) for i in range(12)}
    assert infer(state_dict, LAPE) == {"join": "unshared"}
    model = build(state_dict, LAPE)
    assert all(torch.equal(model.pos_embed[i], state_dict[f"pos_embed{i}"][0]) for i in range(12))
    with pytest.raises(UserError, match=r"pos_embed is \(11, 197, 192\) and should be \(12, 197, 192\)"):
        from_official(without(state_dict, "pos_embed10"), LAPE)


@pytest.mark.parametrize(
    ("position", "table"),
    [
        ("sincos_1d", sincos_1d(197, 192)[0]),  # as LaPE's code stores it, without a batch axis
        ("sincos_2d", sincos_2d((14, 14), 192, 1)),
        ("sincos_2d", sincos_2d((14, 14), 192, 1).half()),
        ("sincos_1d", noise("pos_embed", [197, 192])),
    ],
)
def test_sinusoids(position: str, table: Tensor):
    state_dict = official("lape_deit_tiny_learnable_LaPE") | {"pos_embed": table}
    assert infer(state_dict, LAPE) == {"position": position}
    model = build(state_dict, LAPE)
    assert not model.pos_embed.requires_grad
    assert torch.equal(model.pos_embed[0], table.float().view(197, 192))


def test_relative_tables():
    state_dict = without(official("lape_deit_tiny_learnable_basic"), "pos_embed")
    for i in range(12):
        name = f"blocks.{i}.attn.relative_position_bias_table"
        state_dict[name] = noise(name, [729, 3])
        state_dict[f"blocks.{i}.attn.relative_position_index"] = torch.zeros(196, 196, dtype=torch.int64)
    table = convert(state_dict, LAPE)
    assert table.options == {"position": "none", "join": "add", "rel_pos": "table"}
    assert table.dropped == [f"blocks.{i}.attn.relative_position_index" for i in range(12)]
    assert sum(p.numel() for p in build(state_dict, LAPE).parameters()) == 5_705_836
    for i in range(12):
        state_dict |= fill({f"blocks.{i}.attn.pe_norm.{part}": [196] for part in ("weight", "bias")})
    assert infer(state_dict, LAPE)["rel_pos"] == "table_norm"
    assert sum(p.numel() for p in build(state_dict, LAPE).parameters()) == 5_710_540


@pytest.mark.parametrize(("file", "count"), [("LaPE", 5_915_408), ("basic", 5_910_800)])
def test_distilled(file: str, count: int):
    state_dict = official(f"lape_deit_tiny_learnable_{file}")
    state_dict |= fill({"dist_token": [1, 1, 192], "pos_embed": [1, 198, 192]})
    state_dict |= fill({"head_dist.weight": [1000, 192], "head_dist.bias": [1000]})
    for name in (LAPE, "deit_tiny_distilled_patch16_lape_224"):
        model = build(state_dict, name)
        assert sum(p.numel() for p in model.parameters()) == count
    model.set_distilled_training()
    first, second = model.train()(images(224))
    assert first.shape == second.shape == (2, 1000)
    assert not torch.equal(first, second)
    plain = timm.create_model("deit_tiny_distilled_patch16_224")
    if file == "basic":  # which timm has
        plain.load_state_dict(state_dict)
        torch.testing.assert_close(model.eval()(images(224)), plain.eval()(images(224)), atol=1e-5, rtol=0)


def test_a_distilled_name_takes_weights_without_the_token():
    state_dict = official("lape_deit_tiny_learnable_LaPE")
    assert infer(state_dict, "deit_tiny_distilled_patch16_lape_224") == {"distillation_token": False}


def test_another_image_size_and_no_head():
    state_dict = without(official("lape_deit_tiny_learnable_LaPE"), "head") | fill({"pos_embed": [1, 577, 192]})
    assert infer(state_dict, LAPE) == {"num_classes": 0, "img_size": 384}
    assert build(state_dict, LAPE)(images(384)).shape == (2, 192)


def test_life_with_its_norm():
    state_dict = official("life_deit_tiny_patch4_32_ms")
    for i in range(12):
        state_dict |= fill({f"blocks.{i}.attn.qkv.norm.{part}": [192] for part in ("weight", "bias")})
    name = "deit_tiny_patch4_life_32"
    assert infer(state_dict, name) == {"num_classes": 100, "qkv_norm": True}
    assert sum(p.numel() for p in build(state_dict, name).parameters()) == 5_458_468


# -- networks without a golden file -----------------------------------------------------------------------------------


def test_t2t():
    state_dict = fill(official_names.t2t())
    assert len(state_dict) == 111
    state_dict["pos_embed"] = sincos_1d(197, 256)
    assert infer({"state_dict_ema": state_dict}, "t2t_vit_7") == {}
    model = build(state_dict, "t2t_vit_7")
    assert sum(p.numel() for p in model.parameters()) == 4_310_222
    assert sum(p.numel() for p in model.parameters() if not p.requires_grad) == 54_528
    assert torch.equal(model.patch_embed.attention2.w, state_dict["tokens_to_token.attention2.w"])
    assert model(images(224)).isfinite().all()


@pytest.mark.parametrize(("name", "count"), [("cvt_7_4_32", 3_716_619), ("cct_7_3x1_32", 3_760_139)])
def test_sequence_pooling(name: str, count: int):
    state_dict = without(official("cct_vit_7_4_32"), "class_emb")
    tokens = 64 if name.startswith("cvt") else 256
    state_dict |= fill({"classifier.positional_emb": [1, tokens, 256]})
    state_dict |= fill({"classifier.attention_pool.weight": [1, 256], "classifier.attention_pool.bias": [1]})
    if tokens == 256:
        del state_dict["tokenizer.conv_layers.0.0.bias"]
        state_dict |= fill({"tokenizer.conv_layers.0.0.weight": [256, 3, 3, 3]})
    assert infer(state_dict, name) == {}
    model = build(state_dict, name)
    assert sum(p.numel() for p in model.parameters()) == count
    assert model(images(32)).isfinite().all()


@pytest.mark.parametrize("heads", [1, 6])
def test_gab(heads: int):
    """The authors' script adds two parameters and two buffers to each layer of timm's network."""
    name, shape = "vit_relpos_small_patch16", {"embed_dim": 48, "depth": 2}
    with torch.device("meta"):
        timms = timm.create_model(f"{name}_224", **shape).state_dict()
    plain = fill({key: list(value.shape) for key, value in timms.items()})
    layers = [f"blocks.{i}.attn.rel_pos." for i in range(2)]
    state_dict = plain | fill({layer + key: [heads] for layer in layers for key in ("sigma_param", "amplitude_param")})
    state_dict |= fill({f"{layer}relative_coords_{axis}": [27] for layer in layers for axis in "HW"})
    found = convert(state_dict, f"{name}_gab_224", **shape)
    assert found.options == shape | ({} if heads == 1 else {"per_head": True})
    assert len(found.dropped) == 4
    gaussian = build(state_dict, f"{name}_gab_224", **shape).blocks[1].attn.gaussian
    assert torch.equal(gaussian.sigma, state_dict["blocks.1.attn.rel_pos.sigma_param"])
    assert torch.equal(gaussian.amplitude, state_dict["blocks.1.attn.rel_pos.amplitude_param"])


def test_relpos_without_the_gaussian_is_timm_s():
    name, shape = "vit_relpos_small_patch16", {"embed_dim": 48, "depth": 2}
    twin = timm.create_model(f"{name}_224", **shape).eval()
    state_dict = fill({key: list(value.shape) for key, value in twin.state_dict().items()})
    twin.load_state_dict(state_dict)
    model = build(state_dict, f"{name}_gab_224", **shape)
    assert not hasattr(model.blocks[0].attn, "gaussian")
    torch.testing.assert_close(model(images(224)), twin(images(224)), atol=1e-5, rtol=0)


SMALL: dict[str, Any] = {"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4]}


def test_swin_is_timm_s():
    state_dict = fill(official_names.swin(24, [2, 2], [2, 4], window=7, grid=14))
    name = "swin_tiny_patch4_window7_lape_224"
    found = convert({"model": state_dict}, name, **SMALL)
    assert found.options == {
        "num_classes": 10,
        "position": "none",
        "join": "add",
        "img_size": 56,
        **SMALL,
    }
    assert found.renamed["layers.0.downsample.reduction.weight"] == "layers.1.downsample.reduction.weight"
    assert found.renamed["head.bias"] == "head.fc.bias"
    assert "layers.0.blocks.1.attn_mask" in found.dropped
    twin = timm.create_model("swin_tiny_patch4_window7_224", num_classes=10, img_size=56, **SMALL)
    twin.load_state_dict(swin_transformer.checkpoint_filter_fn(dict(state_dict), twin))
    model = build(state_dict, name, **SMALL)
    torch.testing.assert_close(model(images(56)), twin.eval()(images(56)), atol=1e-5, rtol=0)
    kept = convert(twin.state_dict(), name, img_size=56, **SMALL)  # timm's names are ours
    assert not kept.renamed
    assert all(torch.equal(kept.weights[key], found.weights[key]) for key in found.weights)


def test_swin_of_another_window():
    state_dict = fill(official_names.swin(24, [2, 2], [2, 4], window=5, grid=20))
    assert infer(state_dict, "swin_small_patch4_window7_gab_224", **SMALL) == {
        "num_classes": 10,
        "gab": False,
        "window_size": 5,
        "img_size": 80,
        **SMALL,
    }
    assert build(state_dict, "swin_small_patch4_window7_gab_224", **SMALL)(images(80)).shape == (2, 10)


def test_swin_v2_is_timm_s():
    state_dict = fill(official_names.swin(24, [2, 2], [2, 4], window=4, grid=8, v2=True))
    name = "swinv2_tiny_window8_life_256"
    found = convert(state_dict, name, **SMALL)
    assert found.options == {"num_classes": 10, "life": False, "window_size": 4, "img_size": 32, **SMALL}
    assert found.weights["layers.0.blocks.0.attn.q_bias"] is state_dict["layers.0.blocks.0.attn.q_bias"]
    twin = timm.create_model("swinv2_tiny_window8_256", num_classes=10, img_size=32, window_size=4, **SMALL)
    twin.load_state_dict(swin_transformer_v2.checkpoint_filter_fn(dict(state_dict), twin))
    model = build(state_dict, name, **SMALL)
    torch.testing.assert_close(model(images(32)), twin.eval()(images(32)), atol=1e-5, rtol=0)


def test_swin_v2_with_life_loses_the_biases_that_its_code_never_uses():
    shapes = official_names.swin(96, [2, 2, 6, 2], [3, 6, 12, 24], window=8, grid=64, v2=True, life=True)
    state_dict = {name: torch.empty(shape) for name, shape in shapes.items()}
    found = convert(state_dict, "swinv2_tiny_window8_life_256")
    assert found.options == {"num_classes": 10}
    assert sum(state_dict[name].numel() for name in found.dropped if name.endswith("_bias")) == 8_832
    parameters = sum(value.numel() for value in found.weights.values())
    assert parameters == 27_809_614 - 8_832 - 90 * 769  # the sheet's, of 100 classes


def test_swin_v2_with_life_runs():
    state_dict = fill(official_names.swin(24, [2, 2], [2, 4], window=4, grid=8, v2=True, life=True))
    model = build(state_dict, "swinv2_tiny_window8_life_256", **SMALL)
    assert torch.equal(
        model.layers[0].blocks[1].attn.qkv.scale1.bias, state_dict["layers.0.blocks.1.attn.qkv.scale1.bias"]
    )
    assert model(images(32)).isfinite().all()


def test_swin_v2_of_another_patch_size():
    state_dict = fill(official_names.swin(24, [2, 2], [2, 4], window=4, grid=8, v2=True, life=True))
    state_dict |= fill({"patch_embed.proj.weight": [24, 3, 1, 1]})
    found = infer(state_dict, "swinv2_tiny_window8_life_256", **SMALL)
    assert (found["patch_size"], found["img_size"], found["window_size"]) == (1, 8, 4)


# -- embeddings that are no embeddings --------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [[], [192], [0, 192], [1, 1, 192], [1, 1, 197, 192]])
def test_an_embedding_of_impossible_shape_is_refused(shape: list[int]):
    state_dict = official("lape_deit_tiny_learnable_basic") | {"pos_embed": torch.zeros(shape)}
    with pytest.raises(UserError, match="pos_embed"):
        convert(state_dict, LAPE)


def test_an_embedding_per_layer_without_batch_axis():
    state_dict = without(official("lape_deit_tiny_learnable_basic"), "pos_embed")
    state_dict |= fill({f"pos_embed{i}": [197, 192] for i in range(12)})
    model = build(state_dict, LAPE)
    assert torch.equal(model.pos_embed[11], state_dict["pos_embed11"])


@pytest.mark.parametrize("others", [{"pos_embed": [1, 197, 192]}, {"pos_embed3": [1, 198, 192]}])
def test_embeddings_that_contradict_one_another_are_refused(others: dict[str, list[int]]):
    state_dict = without(official("lape_deit_tiny_learnable_basic"), "pos_embed")
    state_dict |= fill({f"pos_embed{i}": [1, 197, 192] for i in range(12)} | others)
    with pytest.raises(UserError, match=r"does not know pos_embed\{0,1,2,3"):
        convert(state_dict, LAPE)

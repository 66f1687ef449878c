"""From a config to a network and its name."""

import difflib
from collections.abc import Iterator
from typing import Any

import timm
import torch
from torch import nn

from gab.config import ModelConfig, SwinConfig, SwinV2Config, TimmConfig, ViTConfig
from gab.errors import UserError, check_choice
from gab.models.compact import CompactTransformer
from gab.models.swin import SwinTransformer
from gab.models.swinv2 import SwinTransformerV2
from gab.models.t2t import T2TTransformer
from gab.models.vit import VisionTransformer
from gab.models.vitae import VitaeTransformer
from gab.random import hash_key

NETWORKS: dict[str, Any] = {  # by `network` of their configs
    "vit": VisionTransformer,
    "compact": CompactTransformer,
    "swin": SwinTransformer,
    "swinv2": SwinTransformerV2,
    "vitae": VitaeTransformer,
    "t2t": T2TTransformer,
}


def build(config: ModelConfig, *, image_size: int, num_classes: int, seed: int) -> nn.Module:
    """The network that `config` describes, every tensor started from (seed, its own name).

    A foreign network (`model=timm`) starts by timm's code from a generator seeded by (seed, its name) instead, or from
    its published weights.

    Raises:
        UserError: unknown network or name (with the closest ones), or a shape that cannot be built.
    """
    if isinstance(config, TimmConfig):
        return _build_timm(config, image_size, num_classes, seed)
    check_choice("model.network", config.network, (*NETWORKS, "timm"))
    return NETWORKS[config.network](config, image_size, num_classes=num_classes, seed=seed)


def variant(config: ModelConfig) -> str:
    """The flat name of a network with its switches, e.g. `vit_s16_gab_per_head`."""
    if isinstance(config, TimmConfig):
        return config.name
    assert isinstance(config, ViTConfig | SwinConfig | SwinV2Config)
    return config.base + "".join(f"_{switch}" for switch in _switches(config))


def _switches(config: ViTConfig | SwinConfig | SwinV2Config) -> Iterator[str]:
    if config.gab:
        yield "gab"
        if config.gaussian.per_head:
            yield "per_head"
        if config.gaussian.frozen:
            yield "frozen"
        if config.gaussian.class_bias != "zero":
            yield f"class_{config.gaussian.class_bias}"
    if isinstance(config, SwinConfig):
        yield from _swin_places(config)
    if isinstance(config, ViTConfig):
        yield from _vit_places(config)
    if isinstance(config, ViTConfig | SwinV2Config) and config.life:
        yield "life"
    if isinstance(config, ViTConfig) and config.life:
        if config.qkv_norm:
            yield "qkv_norm"
        if config.aux_key != "released" and config.class_token:
            yield config.aux_key


def _swin_places(config: SwinConfig) -> Iterator[str]:
    """How a Swin transformer knows places, where it is not by its tables alone."""
    if config.rel_pos == "none":
        yield "norpe"
    if config.position != "none":
        yield config.position if config.join == "add" else config.join
        if config.join_norm != "layer_norm":
            yield config.join_norm


def _vit_places(config: ViTConfig) -> Iterator[str]:
    """How a ViT knows places, where it is not the usual: the relative MLP without a class token, else the position that
    its kind of network has; no position beside a relative bias."""
    relative = "mlp" if config.network == "vit" and not config.class_token else "none"
    position = "none" if config.rel_pos != "none" else type(config).position
    if config.rel_pos != relative:
        yield "norpe" if config.rel_pos == "none" else config.rel_pos
    if config.rel_pos_start != "default":
        yield f"rel_{config.rel_pos_start}"
    if config.join != "add":
        yield config.join
        if config.join_norm != "layer_norm":
            yield config.join_norm
    if config.position != position:
        yield "nope" if config.position == "none" else config.position
    if config.network != "vit" and config.class_token and not type(config).class_token:
        yield "class_token"


def check_name(name: str) -> None:
    """Raises UserError, with the closest names, for one that timm does not know."""
    known = timm.list_models()
    if name.partition(".")[0] not in known:
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(close)}?" if close else "`timm.list_models()` lists all."
        raise UserError(f"timm has no model named {name!r}; {hint}")


def not_downloaded(name: str, error: OSError) -> UserError:
    """For what timm raises where its weights can neither be fetched nor are there already."""
    return UserError(
        f"the weights of {name} could not be downloaded ({error}): docs/clusters.md says how to bring them to a "
        "machine without a network"
    )


def _build_timm(config: TimmConfig, image_size: int, num_classes: int, seed: int) -> nn.Module:
    check_name(config.name)
    options = {"num_classes": num_classes, **config.kwargs}
    if config.drop_path_rate is not None:  # not every network has one
        options["drop_path_rate"] = config.drop_path_rate
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(hash_key("init", seed, config.name))
        try:
            model = _create(config, image_size, options)
        except (TypeError, ValueError, RuntimeError, AssertionError, OSError) as error:
            if config.pretrained and isinstance(error, OSError):
                raise not_downloaded(config.name, error) from error
            raise UserError(
                f"timm could not build {config.name} with {options} ({error}): change model.kwargs, or "
                "model.drop_path_rate=null for a network without it"
            ) from error
    if type(model) in NETWORKS.values() and not config.pretrained:
        model.start(seed)  # type: ignore[operator]
    return model


def _create(config: TimmConfig, image_size: int, options: dict) -> nn.Module:
    """The timm network, given `img_size` where it is made for one size."""
    cfg = timm.get_pretrained_cfg(config.name)
    if cfg is not None and cfg.fixed_input_size:
        options = {"img_size": image_size, **options}
    return timm.create_model(config.name, pretrained=bool(config.pretrained), **options)

"""How a network of this package comes under timm's roof: `import gab; timm.create_model("vitae_tiny")`."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import timm
import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

default_cfgs: dict[str, Any] = {}  # where timm looks for the evaluation settings of the names registered here
REGISTERED: dict[str, tuple[type[nn.Module], Any]] = {}  # network and config by name


def evaluation(size: int = 224, **options: Any) -> dict[str, Any]:
    """What timm keeps about a network made for images of `size`: evaluation settings, and where weights lie.

    ImageNet's mean and standard deviation, crop 0.9 and bicubic resizing, unless `options` say otherwise.
    """
    return {
        "num_classes": 1000,
        "input_size": (3, size, size),
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "fixed_input_size": True,
        "classifier": "head",
        **options,
    }


def configure(cfg: Any, kwargs: dict[str, Any]) -> Any:
    """Takes from `kwargs` what names a field of `cfg`, or of a group in it (`per_head` of `gaussian`)."""
    changes: dict[str, Any] = {}
    for field in fields(cfg):
        value = getattr(cfg, field.name)
        if field.name in kwargs:
            changes[field.name] = kwargs.pop(field.name)
        elif is_dataclass(value):
            changes[field.name] = configure(value, kwargs)
    return replace(cfg, **changes)


def arguments(cfg: Any) -> dict[str, Any]:
    """The keywords from which `configure` makes `cfg` again; those that are None are left out, as timm does."""
    flat: dict[str, Any] = {}
    for field in fields(cfg):
        value = getattr(cfg, field.name)
        if is_dataclass(value):
            flat |= arguments(value)
        elif value is not None and field.name not in ("network", "base"):
            flat[field.name] = value
    return flat


def generic_name(cfg: Any) -> str:
    """The name under which timm makes any network of this kind, all of it given by keywords: `gab_vit`."""
    return f"gab_{cfg.network}"


def create(cfg: Any, **options: Any) -> nn.Module:
    """The network of `cfg` as timm makes it by name, so that timm can save it and load it again.

    Args:
        cfg: a config of this package.
        options: further keywords of timm.create_model, such as `img_size` and `num_classes`.
    """
    return timm.create_model(generic_name(cfg), **arguments(cfg), **options)


def register(
    name: str,
    network: type[nn.Module],
    config: Any,
    settings: dict[str, Any],
    *,
    weights_filter: Callable[[dict[str, Tensor], Any], dict[str, Tensor]],
    feature_cfg: dict[str, Any],
    tag: str = "",
) -> None:
    """Makes `network(config)` buildable as `timm.create_model(name)`, with any field of the config as a keyword.

    The first of its kind registers the kind too (`generic_name`), started from the config's defaults.

    Args:
        name: of the model.
        network: called with a config, `img_size`, `in_chans`, `num_classes`, `global_pool`, `seed`.
        config: where the keywords start from; one that names no field of it and no argument is a TypeError.
        settings: of `evaluation`.
        weights_filter: from a checkpoint's weights to the network's.
        feature_cfg: timm's, for `features_only=True`.
        tag: of the pretrained weights, if there are any.
    """

    def entry(
        pretrained: bool = False, device: Any = None, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> nn.Module:
        cfg = configure(config, kwargs)
        if settings["input_size"][1:] != (224, 224):
            kwargs.setdefault("img_size", settings["input_size"][1])
        features = {**feature_cfg, "out_indices": kwargs.pop("out_indices", feature_cfg["out_indices"])}
        model = build_model_with_cfg(
            network,
            name,
            pretrained,
            model_cfg=cfg,
            feature_cfg=features,
            pretrained_filter_fn=weights_filter,
            **kwargs,
        )
        return model.to(device=device, dtype=dtype)

    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = f"{network.__name__}; keywords: any field of {type(config).__name__}."
    REGISTERED[name] = (network, config)
    default_cfgs.update(generate_default_cfgs({f"{name}.{tag}" if tag else name: settings}))
    globals()[name] = register_model(entry)
    if (generic := generic_name(config)) not in REGISTERED:
        common = {key: settings[key] for key in (*evaluation(), "first_conv") if key in settings}
        register(generic, network, type(config)(), common, weights_filter=weights_filter, feature_cfg=feature_cfg)

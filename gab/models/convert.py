"""Weights as the authors publish them, into our networks and timm's.

Released networks are laid out as ours but for names (`RULES`), buffers that are no weights, and the shape of some
embeddings. What `create_model` must be told to build the network that takes them is inferred from names and shapes.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from math import isqrt
from typing import Any, NamedTuple

import timm
import timm.models
import torch
from timm.layers import PatchEmbed
from timm.models import PretrainedCfg
from torch import Tensor, nn

from gab.errors import UserError
from gab.models import compact, t2t, vitae
from gab.models.build import check_name
from gab.models.position import sincos_1d, sincos_2d
from gab.models.pretrained import Weights
from gab.models.registry import REGISTERED, configure
from gab.models.stem import Stem
from gab.models.vit import VisionTransformer

CONTAINERS = ("state_dict_ema", "state_dict", "model", "model_ema")  # the first there is: what its paper evaluates

FEW = 3  # names of one kind that a message spells out


class Rules(NamedTuple):
    """How released names become ours.

    Args:
        renamed: patterns and replacements of `re.sub`, all applied in this order.
        dropped: patterns of what is no weight, taken out where the network has nothing of that name.
        sign: a pattern that released names alone match; without a match nothing is renamed.
    """

    renamed: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = ()
    dropped: tuple[str, ...] = ()
    sign: str = ""


def _next_stage(match: re.Match[str]) -> str:
    return f"layers.{int(match[1]) + 1}.downsample."


SWIN = Rules(  # timm, and so we, merge patches at the start of a stage, Swin's own code at the end
    renamed=((r"^layers\.(\d+)\.downsample\.", _next_stage), (r"^head\.", "head.fc.")),
    dropped=(r"\.relative_position_index$", r"\.relative_coords_table$", r"\.attn_mask$"),
    sign=r"^layers\.0\.downsample\.",
)
RULES: dict[type[nn.Module], Rules] = {  # a network follows those of all its classes
    vitae.VitaeTransformer: Rules(tuple(vitae.OFFICIAL)),
    t2t.T2TTransformer: Rules(tuple(t2t.OFFICIAL)),
    compact.CompactTransformer: Rules(tuple(compact.OFFICIAL)),
    VisionTransformer: Rules(
        renamed=(
            (r"^blocks\.(\d+)\.pe_norm\.", r"join.norms.\1."),  # LaPE
            (r"\.attn\.relative_position_bias_table$", ".attn.rel_pos.relative_position_bias_table"),  # its `relative`
            (r"\.attn\.pe_norm\.", ".attn.rel_pos.norm."),
            (r"\.rel_pos\.sigma_param$", ".gaussian.sigma"),  # GAB
            (r"\.rel_pos\.amplitude_param$", ".gaussian.amplitude"),
        ),
        dropped=(r"\.relative_position_index$", r"\.relative_coords_[HW]$", r"\.rel_coords_log$"),
    ),
    timm.models.SwinTransformer: SWIN,
    timm.models.SwinTransformerV2: SWIN._replace(  # with LIFE its code keeps two biases that it never uses
        dropped=(*SWIN.dropped, r"\.attn\.[qv]_bias$")
    ),
}


class Conversion(NamedTuple):
    """Weights for `timm.create_model(name, **options)`, and what was done to get them."""

    weights: Weights
    options: dict[str, Any]
    renamed: dict[str, str]
    dropped: list[str]


def from_official(state_dict: Mapping[str, Any], model_name: str, **options: Any) -> Weights:
    """Released weights under the names, and in the shapes, of `timm.create_model(model_name, **options)`.

    Args:
        state_dict: tensors by released name, or what the authors' script saved around them.
        model_name: of this package, or of timm.
        options: as for `create_model`; those that `infer` finds need not be given.

    Raises:
        UserError: no weights, a model that cannot be built, or weights that it does not take: all names that it does
            not know, that it lacks, and that have another shape.
    """
    return convert(state_dict, model_name, **options).weights


def infer(state_dict: Mapping[str, Any], model_name: str, **options: Any) -> dict[str, Any]:
    """The options with which `create_model` builds the network for these weights: those given, and what they show.

    Classes, image size, and the parts that have weights. Several joins have the same weights: one without norms of its
    own is `add` and one with them `lape`, unless the name or an option says otherwise.
    """
    return _fit(unwrap(state_dict), model_name, options)[0]


def convert(state_dict: Mapping[str, Any], model_name: str, **options: Any) -> Conversion:
    """`from_official` and `infer` in one, with an account of what was renamed and dropped."""
    given = unwrap(state_dict)
    options, model = _fit(given, model_name, options)
    own = model.state_dict()
    weights, renamed, dropped = _rename(given, type(model), own)
    for name, value in own.items():
        if name.endswith(".num_batches_tracked"):  # of BatchNorm; older files lack it, and nothing reads it
            weights.setdefault(name, torch.zeros(value.shape, dtype=value.dtype))
    _refuse_misfits(weights, own, renamed, call(model_name, options))
    return Conversion({name: weights[name] for name in own}, options, renamed, dropped)


def call(model_name: str, options: dict[str, Any]) -> str:
    """How `create_model` is called, to be read."""
    return ", ".join([f"create_model({model_name!r}", *(f"{key}={value!r}" for key, value in options.items())]) + ")"


def unwrap(content: Any) -> Weights:
    """The tensors by name in what a training script saved, without the prefix that DistributedDataParallel adds.

    Of several sets the one that the papers evaluate: ViTAE and T2T-ViT the averaged weights (`state_dict_ema`), the
    DeiT family the raw ones beside a `model_ema`.

    Raises:
        UserError: there are none.
    """
    if isinstance(content, Mapping):
        found = next((content[name] for name in CONTAINERS if isinstance(content.get(name), Mapping)), content)
        if found and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in found.items()):
            return {name.removeprefix("module."): value for name, value in found.items()}
    raise UserError(
        "There are no weights to convert: give a dict of tensors by name, or one that has it as "
        f"{', '.join(CONTAINERS)}."
    )


def _rename(
    given: Weights, network: type[nn.Module], own: Mapping[str, Any]
) -> tuple[Weights, dict[str, str], list[str]]:
    """The weights under our names, the names that changed, and those of what is no weight."""
    weights: Weights = {}
    renamed, dropped = {}, []
    families = [rules for family, rules in RULES.items() if issubclass(network, family)]
    families = [rules for rules in families if any(re.search(rules.sign, name) for name in given)]
    for old, value in given.items():
        name = old
        for rules in families:
            for pattern, replacement in rules.renamed:
                name = re.sub(pattern, replacement, name)
        if name not in own and any(re.search(pattern, old) for rules in families for pattern in rules.dropped):
            dropped.append(old)
            continue
        if name in weights:
            raise UserError(f"These weights have {name} twice, once as {old}: give the weights of one network.")
        weights[name] = value
        if name != old:
            renamed[old] = name
    _shape_positions(weights, renamed)
    return weights, renamed, dropped


def _shape_positions(weights: Weights, renamed: dict[str, str]) -> None:
    """An embedding per layer becomes one tensor (layers, N, C), and one without a batch axis (1, N, C).

    Embeddings per layer that differ in shape, or stand beside a common one, keep their names, which no network knows.
    """
    layers = sorted((int(match[1]), name) for name in weights if (match := re.fullmatch(r"pos_embed(\d+)", name)))
    for name in ("pos_embed", *(name for _, name in layers)):
        if name in weights and weights[name].ndim == 2:
            weights[name] = weights[name].unsqueeze(0)
    if "pos_embed" not in weights and len({weights[name].shape for _, name in layers}) == 1:
        weights["pos_embed"] = torch.cat([weights.pop(name) for _, name in layers])
        renamed.update({name: "pos_embed" for _, name in layers})


def _fit(given: Weights, model_name: str, options: dict[str, Any]) -> tuple[dict[str, Any], nn.Module]:
    """The options of `infer`, and the network without memory for its weights that they build."""
    check_name(model_name)
    network, config = REGISTERED.get(model_name, (None, None))
    weights, *_ = _rename(given, network or type(_on_meta(model_name, options)), {})
    if "pos_embed" in weights and not _is_embedding(weights):
        del weights["pos_embed"]  # nothing follows from it, and it will be refused
    settings = timm.get_pretrained_cfg(model_name) or PretrainedCfg()
    found: dict[str, Any] = {"num_classes": _classes(weights, settings)}
    usual: dict[str, Any] = {"num_classes": settings.num_classes, "img_size": settings.input_size[1]}
    if config is not None:
        config = configure(config, dict(options))
        found |= _parts(weights, given, config)
        found |= _windows(given, found.get("patch_size", getattr(config, "patch_size", 1)))
        usual |= {key: getattr(part, key) for part in (config.gaussian, config) for key in _keys(part)}
    shown = {key: value for key, value in found.items() if key in usual and value != usual[key]}
    try:
        model = _on_meta(model_name, shown | options)
    except UserError:  # the weights are another network's: what does not fit says more than what cannot be built
        return options, _on_meta(model_name, options)
    options = shown | options
    if "img_size" not in options and (img_size := _image_size(weights, model)):
        options["img_size"] = img_size
        model = _on_meta(model_name, options)
    return options, model


def _keys(config: Any) -> set[str]:
    return {field.name for field in fields(config)}


def _classes(weights: Weights, settings: PretrainedCfg) -> int:
    """The number of logits; 0 where there is no head."""
    heads = (settings.classifier,) if isinstance(settings.classifier, str) else settings.classifier or ()
    head = next((weights[f"{name}.weight"] for name in heads if f"{name}.weight" in weights), None)
    return 0 if head is None else len(head)


def _parts(weights: Weights, given: Weights, config: Any) -> dict[str, Any]:
    """What the sockets of a network hold, by the names of its config."""

    def has(pattern: str) -> bool:
        return any(re.search(pattern, name) for name in weights)

    position = _position(weights, given) if has(r"(^|\.)pos_embed$") else "none"
    found = {
        "position": position,
        "join": _join(position, has(r"(^|\.)join\.norms\."), weights, config),
        "rel_pos": _relative(weights, has, config),
        "distillation_token": "dist_token" in weights,
        "life": has(r"\.qkv\.scale1\."),
        "qkv_norm": has(r"\.qkv\.norm\."),
        "gab": has(r"\.gaussian\.sigma$"),
        "class_bias": "learned" if has(r"\.gaussian\.class_bias$") else config.gaussian.class_bias,
        "per_head": any(value.numel() > 1 for name, value in weights.items() if name.endswith(".gaussian.sigma")),
    }
    if "patch_embed.proj.weight" in weights and getattr(config, "stem", "patch") == "patch":
        found["patch_size"] = weights["patch_embed.proj.weight"].shape[-1]
    return found


def _position(weights: Weights, given: Weights) -> str:
    """The kind of the embedding: by its values, or by LaPE's habit to keep sinusoids without a batch axis."""
    if "pos_embed" not in weights:  # one per stage
        return "learnable"
    layers, tokens, dim = weights["pos_embed"].shape
    prefix = _prefix(weights)
    side = isqrt(tokens - prefix)
    kinds = {"sincos_1d": sincos_1d(tokens, dim)}
    if side * side == tokens - prefix and dim % 4 == 0:
        kinds["sincos_2d"] = sincos_2d((side, side), dim, prefix)
    for kind, table in kinds.items():
        if layers == 1 and torch.allclose(weights["pos_embed"].float(), table, rtol=0, atol=1e-3):  # half precision too
            return kind
    return "sincos_1d" if "pos_embed" in given and given["pos_embed"].ndim == 2 else "learnable"


def _join(position: str, norms: bool, weights: Weights, config: Any) -> str:
    """The join that has these weights; of several, the one of `config`, else the usual one."""
    if position == "none":
        return "add"
    if any(len(value) > 1 for name, value in weights.items() if name.endswith("pos_embed")):
        return "unshared"
    possible = ("lape", "lape_sharing") if norms else ("add", "shared")
    return config.join if getattr(config, "join", None) in possible else possible[0]


def _relative(weights: Weights, has: Callable[[str], bool], config: Any) -> str:
    """The relative bias that has these weights; of several, the one of `config`, else LaPE's table."""
    if has(r"\.rel_pos\.mlp\."):
        return "mlp"
    if not has(r"relative_position_bias_table$"):
        return "none"
    if has(r"\.rel_pos\.norm\."):
        return "table_norm"
    table = weights.get("blocks.0.attn.rel_pos.relative_position_bias_table")
    if table is None:  # Swin's
        return "bias"
    if isqrt(len(table)) ** 2 != len(table):  # with rows for a class token
        return "bias"
    return config.rel_pos if config.rel_pos == "bias" and not config.class_token else "table"


def _is_embedding(weights: Weights) -> bool:
    """Whether positions are (layers, N, C), with patches beside the tokens that have no place."""
    shape = weights["pos_embed"].shape
    return len(shape) == 3 and shape[1] > _prefix(weights)


def _prefix(weights: Weights) -> int:
    return sum(token in weights for token in ("cls_token", "dist_token"))


def _windows(given: Weights, patch_size: int) -> dict[str, Any]:
    """Window and image size of a Swin transformer, from buffers of its released code and its tables.

    The mask of shifted windows is (windows, N, N), N the tokens of a window.
    """
    mask, table = (
        given.get(f"layers.0.blocks.{name}") for name in ("1.attn_mask", "0.attn.relative_position_bias_table")
    )
    if mask is not None:
        window = isqrt(mask.shape[1])
        return {"window_size": window, "img_size": isqrt(len(mask)) * window * patch_size}
    return {} if table is None else {"window_size": (isqrt(len(table)) + 1) // 2}


def _image_size(weights: Weights, model: nn.Module) -> int | None:
    """The side of the square images that an embedding or a table is made for, where `model` is made for others."""
    table = weights.get("blocks.0.attn.rel_pos.relative_position_bias_table")
    if "pos_embed" in weights:
        tokens = weights["pos_embed"].shape[1] - _prefix(weights)
    elif table is not None:
        tokens = ((isqrt(len(table)) + 1) // 2) ** 2
    else:
        return None
    side, stem = isqrt(tokens), getattr(model, "patch_embed", None)
    if side * side != tokens or not isinstance(stem, PatchEmbed | Stem) or (side, side) == stem.grid_size:
        return None
    return side * stem.patch_size[0]


def _on_meta(model_name: str, options: dict[str, Any]) -> nn.Module:
    """The network without memory for its weights."""
    seed = {"seed": 0} if model_name in REGISTERED else {}  # ours would draw one, which takes a real tensor
    try:
        with torch.device("meta"):
            return timm.create_model(model_name, **(seed | options))
    except UserError:
        raise
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise UserError(f"timm cannot build {model_name} with {options} ({error}): change the options.") from error


def listed(names: list[str]) -> str:
    """All names; those that many layers have as one, `blocks.{0,1,2,3}.norm1.weight`."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.sub(r"\d+", "#", name, count=1), []).append(name)
    listed: list[str] = []
    for pattern, group in groups.items():
        numbers = ",".join(match[0] for name in group if (match := re.search(r"\d+", name)))
        listed += group if len(group) <= FEW else [pattern.replace("#", f"{{{numbers}}}", 1)]
    return ", ".join(listed)


def _refuse_misfits(weights: Weights, own: Mapping[str, Tensor], renamed: dict[str, str], network: str) -> None:
    """Raises UserError with all names that do not fit: unknown ones as released, missing ones as ours."""
    released = {new: old for old, new in renamed.items()}
    unknown = [released.get(name, name) for name in weights if name not in own]
    missing = [name for name in own if name not in weights]
    misshapen = [
        f"{name} is {tuple(weights[name].shape)} and should be {tuple(value.shape)}"
        for name, value in own.items()
        if name in weights and weights[name].shape != value.shape
    ]
    if problems := [
        *([f"it does not know {listed(unknown)}"] if unknown else []),
        *([f"they lack {listed(missing)}"] if missing else []),
        *misshapen,
    ]:
        raise UserError(
            f"These weights do not fit {network}: {'; '.join(problems)}. Give the name and options of the network that "
            "they come from."
        )

"""A run that begins with the weights of another: `init.source`.

The weights go into a network of the run's config at the size of the images that they were trained on, and that network
moves to the run's size: positions and tables are resampled and sigmas rescaled by the one rule that there is for it.
What the source lacks, what does not fit the data set, and what `init.fresh` names starts from (seed, name) as ever, so
that an arm with the Gaussian and one without get the same weights in all that they share.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isqrt
from pathlib import Path
from typing import Any, NamedTuple

import timm
from torch import nn

from gab.config import InitConfig, ModelConfig, SwinConfig, SwinV2Config, TimmConfig
from gab.errors import UserError
from gab.models.build import build
from gab.models.convert import convert, listed
from gab.models.pretrained import Weights
from gab.models.registry import arguments, generic_name
from gab.models.weights import published, read
from gab.training import checkpoint
from gab.training.digest import content_digest
from gab.training.sizes import resize, trained_at
from gab.training.state import WEIGHTS

PARTS = {  # of a network, by what is in the names of their tensors; the head's are asked of the network
    "rel_pos": r"\.rel_pos\.|\.relative_position_bias_table$|\.cpb_mlp\.",
    "position": r"(^|\.)pos_embed$|(^|\.)join\.",
    "gaussian": r"\.gaussian\.",
}
FRESH = ("head", *PARTS)
FILES = (".pt", ".pth", ".bin", ".tar", ".safetensors")
SHOWN = (  # by the weights themselves, so that their own network is built, not the run's
    *("num_classes", "img_size", "patch_size", "window_size", "position", "join", "rel_pos", "rel_pos_start"),
    *("gab", "per_head", "class_bias", "distillation_token", "life", "qkv_norm"),
)


class Source(NamedTuple):
    """Weights under the names of the run's network.

    `image_size` is that of the images that they were trained on; None: any will do. `classes` are the names of their
    classes, where the source knows them.
    """

    weights: Weights
    image_size: int | None
    classes: list[str] | None = None


@dataclass(frozen=True)
class Start:
    """What was done to begin a run, for its record: what identifies the source's weights, and a sentence."""

    digest: str
    sentence: str


def start_from(
    init: InitConfig, model: ModelConfig, *, image_size: int, classes: list[str], seed: int
) -> tuple[nn.Module, Start]:
    """The run's network with the weights of `init.source`, and an account of what was loaded, moved and begun anew.

    Raises:
        UserError: there is no such source, or its weights are of another network: all that does not fit is named.
    """
    assert init.source is not None
    network = build(model, image_size=image_size, num_classes=len(classes), seed=seed)
    source = read_source(init, model)
    size = source.image_size or image_size
    carrier = build(_windowed(model, source.weights), image_size=size, num_classes=len(classes), seed=seed)
    fit = _fit(source, carrier, init.fresh, classes)
    carrier.load_state_dict({name: source.weights[name] for name in fit.taken}, strict=False)
    grid = _move(carrier, model, size, image_size)
    moved = carrier.state_dict()
    network.load_state_dict({name: moved[name] for name in fit.taken}, strict=False)
    digest = content_digest(source.weights)
    way = f"moved from {size} to {image_size} px" if grid else ""
    return network, Start(digest, _account(init, digest, fit, way))


def source_digest(init: InitConfig, model: ModelConfig) -> str:
    """What identifies the weights of `init.source`; raises UserError where there are none."""
    return content_digest(read_source(init, model).weights)


def _windowed(model: ModelConfig, weights: Weights) -> ModelConfig:
    """`model` with the windows that the tables of a Swin transformer are made for."""
    table = weights.get("layers.0.blocks.0.attn.relative_position_bias_table")  # (2 side - 1)² rows
    if table is None or not isinstance(model, SwinConfig):
        return model
    return replace(model, window_size=(isqrt(len(table)) + 1) // 2)


def _move(network: nn.Module, model: ModelConfig, old: int, new: int) -> bool:
    """Move to images of `new` pixels and the windows of `model`; returns whether the images' size changes anything."""
    if isinstance(model, SwinConfig | SwinV2Config):
        network.set_input_size(new, window_size=model.window_size)  # type: ignore[operator]
        return old != new
    return resize(network, old, new)


# -- where the weights are --------------------------------------------------------------------------------------------


def read_source(init: InitConfig, model: ModelConfig) -> Source:
    """The weights of `init.source`: a file, where there is one of that name, else a name of timm."""
    assert init.source is not None
    path = Path(init.source)
    if path.is_file() or path.suffix in FILES or "/" in init.source:
        content = {"format": None} if path.is_dir() else read(path)  # of a run's folder, its checkpoint is named
        if isinstance(content, Mapping) and "format" in content:
            return _checkpoint(path, init.weights)
        _only_raw(init)
        return _official(content, model)
    _only_raw(init)
    network = published(init.source)
    cfg: dict[str, Any] = network.pretrained_cfg  # type: ignore[assignment]
    return Source(dict(network.state_dict()), cfg["input_size"][-1] if cfg["input_size"] else None)


def _only_raw(init: InitConfig) -> None:
    """Of what others publish, nobody but they can say what it is."""
    if init.weights != "raw":
        raise UserError(f"init.weights={init.weights} is for checkpoints of this project: set init.weights=raw")


def _checkpoint(path: Path, kind: str) -> Source:
    """The weights of a checkpoint of this project."""
    content = checkpoint.load(path)
    weights = content[WEIGHTS[kind]]
    if weights is None:
        raise UserError(f"{path} holds no averaged weights: set init.weights=raw")
    return Source(weights, trained_at(content), content["classes"])


def _official(content: Any, model: ModelConfig) -> Source:
    """Weights as authors publish them; what their own network was, the weights show."""
    if isinstance(model, TimmConfig):
        found = convert(content, model.name, **model.kwargs)
        return Source(found.weights, found.options.get("img_size"))
    options = {key: value for key, value in arguments(model).items() if key not in SHOWN}
    found = convert(content, generic_name(model), **options)
    usual = timm.get_pretrained_cfg(generic_name(model), allow_unregistered=False)
    assert usual is not None
    return Source(found.weights, found.options.get("img_size", usual.input_size[-1]))  # or they show none


# -- what of them is taken --------------------------------------------------------------------------------------------


class Fit(NamedTuple):
    """Names of tensors: `taken` from the source; by part, those that start anew and those that are of no use."""

    taken: list[str]
    anew: dict[str, list[str]]
    unused: dict[str, list[str]]


def _fit(source: Source, network: nn.Module, fresh: list[str], classes: list[str]) -> Fit:
    """Raises UserError where names or shapes outside of `FRESH` differ."""
    own, heads = network.state_dict(), _head_names(network)
    computed = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}  # sinusoids
    others = source.classes is not None and source.classes != classes

    def part(name: str) -> str | None:
        if name.startswith(heads) or name.startswith("head_dist."):
            return "head"
        return next((key for key, pattern in PARTS.items() if re.search(pattern, name)), None)

    taken, anew, unused = [], {}, {}  # type: list[str], dict[str, list[str]], dict[str, list[str]]
    wrong: dict[str, list[str]] = {"lacks": [], "does not know": [], "has in another shape": []}
    for name, value in own.items():
        given, of = source.weights.get(name), part(name)
        if of == "position" and name in computed:
            continue
        differs = given is not None and given.shape != value.shape
        if given is not None and not differs and of not in fresh and not (of == "head" and others):
            taken.append(name)
        elif of in fresh or (of is not None and given is None) or of in ("head", "gaussian"):
            anew.setdefault(str(of), []).append(name)
        elif name.endswith("num_batches_tracked"):  # of BatchNorm; older files lack it, and nothing reads it
            continue
        else:
            wrong["has in another shape" if differs else "lacks"].append(name)
    for name in source.weights.keys() - own.keys():
        of = part(name)
        (wrong["does not know"] if of is None else unused.setdefault(of, [])).append(name)
    if not taken or any(wrong.values()):
        what = "; ".join(f"it {verb} {listed(sorted(names))}" for verb, names in wrong.items() if names)
        raise UserError(
            f"init.source holds weights of another network ({what}): give one that model has, or another model"
        )
    return Fit(taken, anew, unused)


def _head_names(network: nn.Module) -> tuple[str, ...]:
    """How the names of the classifier's tensors begin."""
    found = network.get_classifier()  # type: ignore[operator]
    heads = found if isinstance(found, tuple) else (found,)
    return tuple(f"{name}." for name, module in network.named_modules() if any(module is head for head in heads))


def _account(init: InitConfig, digest: str, fit: Fit, way: str) -> str:
    """One line for the log."""
    kind = f" ({init.weights})" if init.weights != "raw" else ""
    parts = [f"{len(fit.taken)} tensors of {init.source}{kind}, {digest}"]
    parts += [way] if way else []
    if fit.anew:
        parts.append("anew " + ", ".join(f"{part} ({len(names)} tensors)" for part, names in fit.anew.items()))
    if fit.unused:
        parts.append("not used " + ", ".join(f"{part} ({len(names)})" for part, names in sorted(fit.unused.items())))
    return "weights:    " + "; ".join(parts)

"""Networks with their weights, from checkpoints and from timm's registry, and the images that they are used to."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from conf.evaluation import require_imagenet
from conf.schema import SPLITS, EvaluateConfig, data_from, model_from
from data import may_share
from data.config import DataConfig
from gab.config import ModelConfig, TimmConfig
from gab.errors import UserError
from gab.evaluators import synsets
from gab.models import build, variant
from gab.models.registry import create
from gab.training import checkpoint
from gab.training.sizes import resize, trained_at
from gab.training.state import WEIGHTS, load_weights

TRANSFORM = {  # settings of the evaluation transform, and timm's names of them
    "mean": "mean",
    "std": "std",
    "eval_interpolation": "interpolation",
    "eval_crop": "crop_pct",
}


@dataclass(frozen=True)
class Subject:
    """What is evaluated: its name, its networks by the kind of their weights, how far it was trained."""

    name: str
    networks: dict[str, nn.Module]
    epoch: int | None = None
    step: int | None = None


def find_subject(config: EvaluateConfig, images: DataConfig, classes: list[str] | None) -> Subject:
    """The networks that an evaluation is of, for images of the size of `images`.

    Args:
        classes: of the data set's own images; None where they are not looked at.

    Raises:
        UserError: the network knows other classes than the images, or there are no such weights.
    """
    if config.checkpoint is None:
        assert isinstance(config.model, TimmConfig)
        return Subject(variant(config.model), {"raw": published(config.model, images, config.evaluators, classes)})
    stored = checkpoint.load(Path(config.checkpoint))
    known = stored["classes"]
    if classes is not None and known != classes:
        raise UserError(
            f"{config.checkpoint} has {len(known):,} classes ({', '.join(known[:3])} …), but data={images.name} has "
            f"{len(classes):,} ({', '.join(classes[:3])} …): evaluate it on data of its classes"
        )
    require_imagenet(config.evaluators, known, config.checkpoint)
    wanted = [k for k in WEIGHTS if config.eval.weights in (k, "both") and stored[WEIGHTS[k]] is not None]
    if not wanted:
        raise UserError(f"{config.checkpoint} holds no averaged weights: take eval.weights=raw")
    compare_transforms("it was trained with", transform_of(data_from(stored["config"]["data"])), images)
    name = variant(model_from(stored["config"]["model"]))
    restored = {kind: restore(stored, kind, images.image_size) for kind in wanted}
    return Subject(name, restored, stored["epochs"], stored["step"])


def published(model: TimmConfig, images: DataConfig, evaluators: Iterable[str], classes: list[str] | None) -> nn.Module:
    """A network of timm's registry with its published weights, or without where `model.pretrained` is False.

    Args:
        classes: of the data set's own images; None where they are not looked at: ImageNet's.

    Raises:
        UserError: it is of other classes, there is no such network, or timm has no weights for it.
    """
    filled = model.pretrained is not False  # null: yes
    count = len(synsets() if classes is None else classes)
    require_imagenet(evaluators, count, f"data={images.name}")
    network = build(replace(model, pretrained=filled), image_size=images.image_size, num_classes=count, seed=0)
    if filled:
        known = getattr(network, "pretrained_cfg", {}).get("num_classes", count)
        if known != count:
            what = f"evaluators=[{','.join(evaluators)}]" if classes is None else f"data={images.name}"
            raise UserError(
                f"{model.name} has {known:,} classes, but {what} has {count:,}: evaluate it on data of its classes"
            )
        compare_transforms("timm evaluates it with", published_transform(network), images)
    return network


def restore(stored: dict[str, Any], kind: str, image_size: int) -> nn.Module:
    """The network of a checkpoint as timm makes it by name, moved to `image_size` if it was trained at another.

    Args:
        stored: what `checkpoint.load` gives.
        kind: of its weights, one of `WEIGHTS` that the checkpoint has.

    Raises:
        UserError: its weights do not fit its config, or it works at no other size than that of its training.
    """
    config = without_weights(model_from(stored["config"]["model"]))
    size, classes = trained_at(stored), len(stored["classes"])
    if isinstance(config, TimmConfig):
        model = build(config, image_size=size, num_classes=classes, seed=0)
    else:
        model = create(config, img_size=size, num_classes=classes)
    load_weights(model, stored[WEIGHTS[kind]])
    resize(model, size, image_size)
    return model


def without_weights(model: ModelConfig) -> ModelConfig:
    """`model` with start values in place of published weights, which need not be there."""
    return replace(model, pretrained=False) if isinstance(model, TimmConfig) else model


def data_of(stored: dict[str, Any]) -> DataConfig:
    """The data set that a checkpoint was trained on; a staged copy of it only where there is such a place."""
    images = data_from(stored["config"]["data"])
    gone = images.stage and not Path(images.stage).expanduser().is_dir()  # the disk of a job that is over
    return replace(images, stage=None) if gone else images


def compare_splits(own: DataConfig, images: DataConfig, split: str) -> None:
    """Warn where images of `split` may be among those that the checkpoint, whose data set is `own`, was trained on."""
    if (images.name, images.reader) != (own.name, own.reader) or split == "train":
        return
    drawing = (key for key in SPLITS if key != "fraction")  # which only leaves training images out
    differing = [key for key in drawing if getattr(images, key) != getattr(own, key)]
    if differing and may_share(images, split, replace(own, root=images.root), "train"):
        trained, asked = (" ".join(f"data.{key}={getattr(one, key)}" for key in differing) for one in (own, images))
        print(
            f"warning: trained with {trained}, evaluated with {asked}: images of the training may be among these; "
            "without these settings, those of the run are taken"
        )


def transform_of(images: DataConfig) -> dict[str, Any]:
    """The settings of its evaluation transform, by their names."""
    return {key: getattr(images, key) for key in TRANSFORM}


def published_transform(network: nn.Module) -> dict[str, Any]:
    """What timm evaluates `network` with, by the names of `DataConfig`; without what timm does not know."""
    cfg: dict[str, Any] = getattr(network, "pretrained_cfg", {})
    found = {key: cfg[theirs] for key, theirs in TRANSFORM.items() if cfg.get(theirs) is not None}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}


def compare_transforms(who: str, usual: dict[str, Any], images: DataConfig) -> None:
    """Say which settings of the evaluation transform differ from those that the weights are used to."""
    differing = [f"data.{key}={value}" for key, value in usual.items() if value != getattr(images, key)]
    if differing:
        print(f"note: {who} {' '.join(differing)}")

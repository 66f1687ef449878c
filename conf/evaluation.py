"""From the section `evaluators` of a config to evaluators, each with the images that it looks at."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from data.batches import EvalBatches, open_eval
from data.config import DataConfig
from data.evaluation_sets import SETS, EvaluationSet
from gab.config import (
    AttentionDistanceConfig,
    BiasMapsConfig,
    ErfConfig,
    EvaluatorConfig,
    PositionSimilarityConfig,
    RealConfig,
    RollOutConfig,
    SetConfig,
)
from gab.errors import UserError
from gab.evaluators import Accuracy, Corruptions, Evaluator, Look, Real, logits, read_labels, synsets
from gab.evaluators.attention import AttentionDistances, RollOuts
from gab.evaluators.base import OWN
from gab.evaluators.biases import BiasMaps, PositionSimilarities
from gab.evaluators.corruptions import PARTS
from gab.evaluators.receptive_fields import ReceptiveFields

SUBSETS = ("a", "r")  # sets with some of ImageNet's classes

INSIDE: dict[type[EvaluatorConfig], type[Any]] = {  # what looks into a network, by its settings
    ErfConfig: ReceptiveFields,
    BiasMapsConfig: BiasMaps,
    PositionSimilarityConfig: PositionSimilarities,
    AttentionDistanceConfig: AttentionDistances,
    RollOutConfig: RollOuts,
}


class Opened:
    """The images of an evaluator, opened when it asks for them and kept until it asks for another part."""

    def __init__(self, open_part: Callable[[str], EvalBatches]):
        self.open_part = open_part
        self.part = ""
        self.batches: EvalBatches | None = None

    def __call__(self, part: str = "") -> EvalBatches:
        if self.batches is None or self.part != part:
            self.close()
            self.part, self.batches = part, self.open_part(part)
        return self.batches

    def close(self) -> None:
        if self.batches is not None:
            self.batches.close()
            self.batches = None


def looks(
    evaluators: dict[str, EvaluatorConfig], data: DataConfig, loading: dict[str, Any], split: str = "val"
) -> dict[str, Look]:
    """The chosen evaluators, but for `top1`.

    Args:
        loading: keywords of `data.open_eval`.
        split: of the data set's own images, for those that look at some of them.
    """
    found = {}
    for name, chosen in evaluators.items():
        if type(chosen) in INSIDE:
            settings: Any = chosen
            some = partial(_open_some, data, split, getattr(settings, "images", None), loading)
            found[name] = Look(INSIDE[type(chosen)](settings), Opened(some), settings.every_epochs)
    for name, image_set in sets(evaluators, data).items():
        settings = evaluators[name]
        assert isinstance(settings, SetConfig)
        images = Opened(partial(image_set.open, **loading))
        found[name] = Look(evaluator(name, settings), images, settings.every_epochs)
    return found


def _open_some(data: DataConfig, split: str, limit: int | None, loading: dict[str, Any], part: str) -> EvalBatches:
    """`limit` images of the data set itself, evenly spread; it has no parts."""
    return open_eval(data, split=split, limit=limit, **loading)


def needs_own_images(evaluators: dict[str, EvaluatorConfig]) -> bool:
    """Whether any of them looks at images of the data set itself."""
    return any(name == OWN or (type(one) in INSIDE and hasattr(one, "images")) for name, one in evaluators.items())


def evaluator(name: str, settings: EvaluatorConfig) -> Evaluator:
    """The evaluator of that name."""
    if isinstance(settings, RealConfig):
        return Real(read_labels(settings.labels))
    if name == "c":
        return Corruptions()
    return Accuracy(name, kept=logits(name) if name in SUBSETS else None)


def sets(evaluators: dict[str, EvaluatorConfig], data: DataConfig) -> dict[str, EvaluationSet]:
    """The chosen sets, to be shown by the transform of `data`."""
    return {
        name: EvaluationSet(
            name,
            Path(settings.root).expanduser(),
            replace(data, eval_crop=data.eval_crop if settings.crop is None else settings.crop),
            synsets(name if name in SUBSETS else ""),
            settings.partial,
        )
        for name, settings in evaluators.items()
        if isinstance(settings, SetConfig)
    }


def check_sets(evaluators: dict[str, EvaluatorConfig], data: DataConfig) -> None:
    """Raise DataError or UserError if a chosen set is not there as a whole; call it before anything takes long."""
    for name, image_set in sets(evaluators, data).items():
        image_set.check(PARTS if name == "c" else ())
        evaluator(name, evaluators[name])


def check_looks(chosen: dict[str, Look], model: nn.Module, image_size: int) -> None:
    """Raise UserError if an evaluator looks for what `model`, on images of `image_size` pixels, has not."""
    for name, one in chosen.items():
        evaluator: Any = one.evaluator
        if type(evaluator) in INSIDE.values():
            try:
                evaluator.check(model, image_size)
            except UserError as error:
                raise UserError(f"evaluators={name}: {error}; or leave {name} out") from error


def require_imagenet(evaluators: Iterable[str], classes: list[str] | int, who: str) -> None:
    """Refuse a network of other classes than ImageNet's where one of `evaluators` is a set for those.

    Args:
        classes: of the network; their number where no more is known.

    Raises:
        UserError: naming the sets.
    """
    chosen = [name for name in evaluators if name in SETS]
    if not chosen or (classes == len(synsets()) if isinstance(classes, int) else tuple(classes) == synsets()):
        return
    known = f"{classes:,}" if isinstance(classes, int) else f"{len(classes):,} ({', '.join(classes[:3])} …)"
    raise UserError(
        f"the images of evaluators=[{','.join(chosen)}] are of ImageNet's 1,000 classes, but {who} has {known}: "
        "leave these evaluators out, or give a network of ImageNet's classes"
    )

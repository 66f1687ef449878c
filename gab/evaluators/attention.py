"""Where attention goes over images of the data set, as evaluators: in training and by `eval.py`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from gab.config import AttentionDistanceConfig, RollOutConfig
from gab.errors import UserError
from gab.evaluators import attention_figures
from gab.evaluators.areas import area
from gab.evaluators.attention_distance import AttentionDistance
from gab.evaluators.attention_maps import attention_layers
from gab.evaluators.attention_rollout import Attended, attention_rollout
from gab.evaluators.base import Conditions, Images, Result
from gab.models.performer import Performer
from gab.models.vitae import ParallelConv
from gab.tracking.figure_files import save
from gab.training.interfaces import EvalBatches


class AttentionDistances:
    """Mean attention distance over images, in float32 whatever the precision of the others; numbers in pixels."""

    def __init__(self, settings: AttentionDistanceConfig):
        self.settings = settings

    def check(self, model: nn.Module, image_size: int) -> None:
        """Raise UserError where the network has no attention weights."""
        attention_layers(model, (image_size, image_size))

    def __call__(self, model: nn.Module, images: Images, conditions: Conditions) -> Result:
        own: list[AttentionDistance] = []  # one, or none without images

        def take(batch: Any) -> None:
            for part in batch.images.split(self.settings.batch_size):
                shown = conditions.prepare(part.to(conditions.processes.device)).float()
                if not own:
                    own.append(AttentionDistance(model, (shown.shape[2], shown.shape[3])))
                own[0].add(model, shown)

        conditions.visit(images(), "attention_distance", take)
        first, *others = _all_shares(own, conditions)
        for other in others:
            first.merge(other)
        files = conditions.tables(attention_distance=first.rows())
        if path := conditions.figure("attention_distance"):
            files += save(attention_figures.distance_by_layer(first), path)
        return Result(first.summary(), first.count, files)


@dataclass(frozen=True)
class Shown:
    """An image of a roll-out: its number in the split, its label, itself (H, W, 3) in 0 ... 1, and what was found."""

    index: int
    label: int
    image: np.ndarray
    found: Attended


class RollOuts:
    """Attention roll-out and its dense form; number: the least share of patches with half of the mass (percent)."""

    def __init__(self, settings: RollOutConfig):
        self.settings = settings
        keys = ("row", "fusion", "discard_ratio", "start_layer", "mode", "renormalise")
        self.options = {key: getattr(settings, key) for key in keys}

    def check(self, model: nn.Module, image_size: int) -> None:
        """Raise UserError where the network cannot be rolled out so, or has no such class."""
        size = (image_size, image_size)
        blank = torch.zeros(1, 3, *size, device=next(model.parameters()).device)
        attention_rollout(model, blank, [self.settings.classes or []], **self.options)

    def __call__(self, model: nn.Module, images: Images, conditions: Conditions) -> Result:
        batches, own = images(), list[Shown]()
        conditions.visit(batches, "rollout", lambda batch: own.extend(self._of_batch(model, batch, conditions)))
        shown = sorted(_all_shares(own, conditions), key=lambda one: one.index)
        areas = [100 * area(one.found.ordinary, 50) for one in shown]
        files = conditions.tables(rollout=_rows(shown, batches))
        if path := conditions.figure("rollout"):
            files += save(_draw(model, shown, batches), path)
        return Result({"area_50": float(np.mean(areas))}, len(shown), files)

    def _of_batch(self, model: nn.Module, batch: Any, conditions: Conditions) -> Iterator[Shown]:
        inputs = conditions.prepare(batch.images.to(conditions.processes.device)).float()
        labels = batch.labels.tolist()
        classes = [self.settings.classes or [label] for label in labels]
        found = attention_rollout(model, inputs, classes, **self.options)
        pictures = batch.images.permute(0, 2, 3, 1).cpu().numpy() / 255
        for index, label, picture, one in zip(batch.indices.tolist(), labels, pictures, found, strict=True):
            yield Shown(index, label, picture, one)


def _rows(shown: Sequence[Shown], batches: EvalBatches) -> list[dict[str, Any]]:
    """Every value of every map, a row each: percent of what reaches the output (of the class)."""
    found = []
    for one in shown:
        maps: dict[Any, np.ndarray] = {"": one.found.ordinary} | dict(one.found.dense)
        for number, values in maps.items():
            named = batches.classes[number] if number != "" else ""
            key = {"image": batches.names[one.index], "true": batches.classes[one.label]}
            key |= {"map": "ordinary" if number == "" else "dense", "class": named}
            for (row, column), value in np.ndenumerate(values):
                found.append({**key, "row": row, "column": column, "percent": 100 * float(value)})
    return found


def _draw(model: nn.Module, shown: Sequence[Shown], batches: EvalBatches) -> Any:
    parts = {ParallelConv: "convolutions beside attention", Performer: "the Performers that make the tokens"}
    ignored = ["values", "LayerScale", "MLPs"]
    ignored += [name for part, name in parts.items() if any(isinstance(module, part) for module in model.modules())]
    return attention_figures.roll_outs(
        np.stack([one.image for one in shown]),
        [one.found for one in shown],
        [one.label for one in shown],
        batches.classes,
        f"Ignored are {', '.join(ignored[:-1])} and {ignored[-1]}.",
    )


def _all_shares(own: list[Any], conditions: Conditions) -> list[Any]:
    """What all processes found, in all of them; raises UserError where that is nothing."""
    found = [one for share in conditions.processes.gather_objects(own) for one in share]
    if not found:
        raise UserError("attention is looked at over images, and there are none")
    return found

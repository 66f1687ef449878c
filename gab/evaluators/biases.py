"""What biases and positions have learned, as evaluators: in training and by `eval.py`. They need no images."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from gab.config import BiasMapsConfig, PositionSimilarityConfig
from gab.evaluators import attention_figures, bias_figures, bias_maps, position_similarity
from gab.evaluators.base import Conditions, Images, Result
from gab.tracking.figure_files import save


class BiasMaps:
    """Maps of every bias around a query and Gaussians fitted to them; numbers: mean R² over layers, in both forms."""

    def __init__(self, settings: BiasMapsConfig):
        self.query = settings.query

    def check(self, model: nn.Module, image_size: int) -> None:
        """Raise UserError where the network has no bias, or no such query."""
        for layer in bias_maps.layer_biases(model):
            layer.query(self.query)

    def __call__(self, model: nn.Module, images: Images, conditions: Conditions) -> Result:
        biases = bias_maps.layer_biases(model)
        fits = bias_maps.fit_rows(biases, self.query)
        files = conditions.tables(bias_fits=fits, bias_maps=bias_maps.map_rows(biases, self.query))
        if path := conditions.figure("bias_maps"):
            files += save(bias_figures.bias_maps(biases, self.query), path)
        for part in bias_maps.PARTS:
            heads = [len(layer.parts.get(part, ())) for layer in biases]
            if (
                max(heads) > 1
                and sum(heads) <= bias_figures.MOST_HEADS
                and (path := conditions.figure(f"bias_heads_{part}"))
            ):
                files += save(bias_figures.bias_heads(biases, part, self.query), path)
        if (drawn := bias_figures.fits(fits)) and (path := conditions.figure("bias_fits")):
            files += save(drawn, path)
        return Result(_mean_fits(fits), 0, files)


def _mean_fits(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Of the relative bias, over the layers that have a fit: mean R² by form; how many peaks lie inside, in percent."""
    fitted = [row for row in rows if row["part"] == "relative" and row["r_squared"] is not None]
    found = {}
    for form, suffix in (("paper", ""), ("offset", "_offset")):
        if chosen := [row for row in fitted if row["form"] == form]:
            found[f"r_squared{suffix}"] = float(np.mean([row["r_squared"] for row in chosen]))
            found[f"inside{suffix}"] = 100 * float(np.mean([row["inside"] for row in chosen]))
    return found


class PositionSimilarities:
    """Similarity of positions; numbers: correlation with distance and half distance, of the first and last layer."""

    def __init__(self, settings: PositionSimilarityConfig):
        self.target = settings.target

    def check(self, model: nn.Module, image_size: int) -> None:
        """Raise UserError where the network has no position, or no such patch."""
        for one in position_similarity.position_similarity(model):
            one.targets(self.target)

    def __call__(self, model: nn.Module, images: Images, conditions: Conditions) -> Result:
        found = position_similarity.position_similarity(model)
        files = conditions.tables(
            position_similarity=position_similarity.summary_rows(found),
            position_maps=position_similarity.map_rows(found, self.target),
        )
        if path := conditions.figure("position_similarity"):
            files += save(attention_figures.similarity_maps(found, self.target), path)
        if path := conditions.figure("position_by_distance"):
            files += save(attention_figures.similarity_by_distance(found), path)
        ends = {"first": found[0], "last": found[-1]}
        named = {f"{end}_{name}": value for end, one in ends.items() for name, value in one.summary().items()}
        return Result({name: value for name, value in named.items() if value is not None}, 0, files)

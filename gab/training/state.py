"""Everything of a run that a step changes, in one object that goes to disk and comes back whole."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gab.errors import UserError
from gab.training.average import Average

WEIGHTS = {"raw": "model", "ema": "ema"}  # kinds of weights, and where `TrainState.state_dict` has them


@dataclass
class TrainState:
    """Weights, their average, the optimiser, what is done of the run, and the best score (`data.metric`) seen.

    `step` counts optimiser steps, and with them the updates of the average; `epochs` counts whole epochs, whose
    evaluation is done too. `skipped` () counts, on the device, the steps that changed nothing since their gradient was
    not finite. `image_size` is that of the images that the model is made for now, in pixels. `averaged` is the last
    step after which all processes had the same statistics of BatchNorm; `batchnorm` keeps it in checkpoints.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: Average | None
    skipped: torch.Tensor
    image_size: int = 0
    step: int = 0
    epochs: int = 0
    best_score: float = -1.0
    averaged: int = 0

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors, numbers and containers."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "skipped": int(self.skipped),
            "image_size": self.image_size,
            "step": self.step,
            "epochs": self.epochs,
            "best_score": self.best_score,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        load_weights(self.model, state["model"])
        if self.ema:
            load_weights(self.ema.module, state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.skipped.fill_(state["skipped"])
        self.step, self.epochs, self.best_score = state["step"], state["epochs"], state["best_score"]


def load_weights(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Load exactly these weights.

    Raises:
        UserError: names or shapes are another model's; the first differences are named.
    """
    own = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    other = {name: tuple(t.shape) for name, t in weights.items()}
    if own != other:
        missing, unknown = sorted(own.keys() - other.keys()), sorted(other.keys() - own.keys())
        shapes = [f"{n} {other[n]} for {own[n]}" for n in own.keys() & other.keys() if own[n] != other[n]]
        parts = [
            f"{what}: {', '.join(names[:3])}{' …' if len(names) > 3 else ''}"
            for what, names in (("missing", missing), ("unknown", unknown), ("other shapes", sorted(shapes)))
            if names
        ]
        raise UserError(
            f"the checkpoint is of another model ({'; '.join(parts)}): give the model that it was trained with"
        )
    model.load_state_dict(weights)

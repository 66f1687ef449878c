"""From uint8 batches to what the network and the loss want: normalise, erase, mix."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gab.augment.erasing import draw_boxes, erase
from gab.augment.mixing import Mixing, draw_mixing, mix_images
from gab.config import AugmentConfig


class Targets(NamedTuple):
    """Labels of every sample and of its partner in the mix; lam is the weight of its own."""

    labels: Tensor  # (B,) int64
    partners: Tensor  # (B,) int64
    lam: Tensor  # (B,) float32


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 (B, 3, S, S) to float32 with the given mean and standard deviation (3,) of values in [0, 1]."""
    return (images.float() / 255 - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)


def mixed_cross_entropy(logits: Tensor, targets: Targets, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy against mixed, smoothed labels; equal to that against the dense soft labels."""
    logits = logits.float()
    own = F.cross_entropy(logits, targets.labels, reduction="none", label_smoothing=label_smoothing)
    partner = F.cross_entropy(logits, targets.partners, reduction="none", label_smoothing=label_smoothing)
    return (targets.lam * own + (1 - targets.lam) * partner).mean()


class Augment:
    """The device side of the augmentation of one run."""

    def __init__(self, config: AugmentConfig, *, seed: int, mean: list[float], std: list[float], device: torch.device):
        self.config, self.seed, self.device = config, seed, device
        self.mean, self.std = torch.tensor(mean, device=device), torch.tensor(std, device=device)
        self.mixes = config.mixup > 0 or config.cutmix > 0

    def __call__(
        self, images: Tensor, labels: Tensor, indices: Tensor, *, epoch: int, step: int, first: int
    ) -> tuple[Tensor, Targets]:
        """Augment one micro-batch.

        Args:
            images, labels: uint8 (B, 3, S, S) and int64 (B,), on the device.
            indices: int64 (B,), on the CPU.
            first: position of the first sample in the global batch, a multiple of the mixing group.
        """
        x = normalize(images, self.mean, self.std)
        size, group = x.shape[-1], self.config.mixing_group
        if self.config.erase_prob > 0:
            drawn = draw_boxes(indices, seed=self.seed, epoch=epoch, size=size, prob=self.config.erase_prob)
            x = erase(x, *(self._move(t) for t in drawn))
        if not self.mixes:
            return x, Targets(labels, labels, torch.ones(len(labels), device=self.device))
        mixing = draw_mixing(
            torch.arange(first // group, (first + len(x)) // group),
            seed=self.seed,
            step=step,
            size=size,
            mixup=self.config.mixup,
            cutmix=self.config.cutmix,
            prob=self.config.mix_prob,
            switch_prob=self.config.switch_prob,
        )
        mixing = Mixing(*(self._move(t) for t in mixing))
        partners = labels.unflatten(0, (-1, group)).flip(1).flatten()
        return mix_images(x, mixing, group), Targets(labels, partners, mixing.lam.repeat_interleave(group))

    def _move(self, tensor: Tensor) -> Tensor:
        """To the device without waiting for it."""
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

"""From uint8 batches to what the network and the loss want: distort, normalise, erase, mix; in timm's order."""

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gab.augment import jitter, randaugment
from gab.augment.erasing import draw_boxes, erase
from gab.augment.mixing import Mixing, draw_mixing, mirrored, mix_images, units
from gab.augment.operations import KINDS, Layer, apply, twice_if_one
from gab.config import AugmentConfig

_DRAWS = 2**14  # samples among which every operation of a recipe appears
_UNLIKE = (5, 7, 11)  # numbers of boxes: PyTorch takes dimensions that are equal at first to be equal for ever


class Targets(NamedTuple):
    """Labels of every sample and of its partner in the mix; lam is the weight of its own."""

    labels: Tensor  # (B,) int64
    partners: Tensor  # (B,) int64
    lam: Tensor  # (B,) float32


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 (B, 3, S, S) to float32 with the given mean and standard deviation (3,) of values in [0, 1]."""
    scale, shift = 1 / (255 * std), mean / std
    return (images * scale.view(-1, 1, 1)).sub_(shift.view(-1, 1, 1))


def mixed_cross_entropy(logits: Tensor, targets: Targets, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy against mixed, smoothed labels; equal to that against the dense soft labels."""
    logits = logits.float()
    own = F.cross_entropy(logits, targets.labels, reduction="none", label_smoothing=label_smoothing)
    partner = F.cross_entropy(logits, targets.partners, reduction="none", label_smoothing=label_smoothing)
    return (targets.lam * own + (1 - targets.lam) * partner).mean()


def centre(images: Tensor, size: int) -> Tensor:
    """The middle `size` pixels of images (B, 3, S, S) that are larger."""
    first = round((images.shape[-1] - size) / 2)
    return images[..., first : first + size, first : first + size]


class Augment:
    """The device side of the augmentation of one run.

    Args:
        mean, std: of values in [0, 1]; the mean is the colour that RandAugment moves in from outside.
        cut: size that larger images are cut to, around their centre; None leaves them as they come.
        compile: make kernels of the steps, for GPUs: else they read and write the images once for every small thing.
    """

    def __init__(
        self,
        config: AugmentConfig,
        *,
        seed: int,
        mean: list[float],
        std: list[float],
        device: torch.device,
        cut: int | None = None,
        compile: bool = False,
    ):
        self.config, self.seed, self.device, self.cut = config, seed, device, cut
        maybe = partial(torch.compile, dynamic=True) if compile else lambda function: function
        self.normalize, self.erase, self.mix_images = maybe(normalize), maybe(erase), maybe(mix_images)
        self.kinds = [kind._replace(run=maybe(kind.run)) for kind in KINDS]
        self.mean, self.std = torch.tensor(mean, device=device), torch.tensor(std, device=device)
        self.fill = torch.tensor([min(255, round(255 * value)) for value in mean], dtype=torch.uint8)

    @torch.no_grad()
    def __call__(
        self, images: Tensor, labels: Tensor, indices: Tensor, *, epoch: int, step: int, first: int
    ) -> tuple[Tensor, Targets]:
        """Augment one micro-batch.

        Args:
            images, labels: uint8 (B, 3, S, S) and int64 (B,), on the device.
            indices: int64 (B,), the samples' keys, on the CPU.
            first: position of the first sample in the global batch, a multiple of the mixing group.
        """
        images = self._distort(images, self.layers(indices, epoch))
        x = self.normalize(images if self.cut is None else centre(images, self.cut), self.mean, self.std)
        if self.config.erase_prob > 0:
            drawn = draw_boxes(indices, seed=self.seed, epoch=epoch, size=x.shape[-1], prob=self.config.erase_prob)
            x = self._erase(x, *drawn)
        return self._mix(x, labels, epoch=epoch, step=step, first=first)

    @torch.no_grad()
    def warm_up(self, count: int, size: int) -> None:
        """Have everything compiled that micro-batches uint8 (`count`, 3, `size`, `size`) may meet.

        What is rarely drawn would else be compiled in the midst of training, while the other processes wait. It works
        on images of its own, and what is drawn later does not depend on it.
        """
        images = torch.zeros(2, 3, size, size, dtype=torch.uint8, device=self.device)
        for layer in self.layers(torch.arange(_DRAWS), epoch=0):
            for op, taps in torch.stack([layer.op, layer.taps], 1).unique(dim=0):
                once = Layer(op.repeat(2), torch.ones(2).double(), taps.repeat(2), layer.fill)
                apply(images, once, self._move, self.kinds)
        if self.config.erase_prob > 0:
            x = torch.zeros(count, 3, self.cut or size, self.cut or size, device=self.device)
            rows = next(n for n in _UNLIKE if n not in x.shape)
            drawn = torch.zeros(rows, dtype=torch.int64), torch.tensor([[0, 1, 0, 2]] * rows), torch.arange(rows)
            self._erase(x, *drawn)

    def layers(self, keys: Tensor, epoch: int) -> list[Layer]:
        """What is done to uint8 images of samples `keys` (B,), one layer after another."""
        config, at = self.config, {"seed": self.seed, "epoch": epoch}
        layers = []
        if config.rotation > 0:
            layers += jitter.rotation(keys, config.rotation, **at)
        if config.randaugment.layers > 0:
            settings = {"interpolation": config.interpolation, "fill": self.fill}
            layers += randaugment.draw(keys, config.randaugment, **settings, **at)  # type: ignore[arg-type]
        if config.three_augment:
            layers += jitter.three_augment(keys, **at)
        if config.color_jitter > 0:
            layers += jitter.color_jitter(keys, config.color_jitter, **at)
        return layers

    def _distort(self, images: Tensor, layers: list[Layer]) -> Tensor:
        if layers:
            images = images.clone(memory_format=torch.contiguous_format)
        for layer in layers:
            apply(images, layer, self._move, self.kinds)
        return images

    def _erase(self, x: Tensor, rows: Tensor, boxes: Tensor, keys: Tensor) -> Tensor:
        """Erase what is drawn on the CPU; where it is nothing, no kernel is needed."""
        drawn = [twice_if_one(column) for column in (rows, boxes, keys)]
        pixels = int((drawn[1][:, 1::2] - drawn[1][:, ::2]).prod(1).sum())
        return self.erase(x, *(self._move(column) for column in drawn), pixels=pixels) if pixels else x

    def _mix(self, x: Tensor, labels: Tensor, *, epoch: int, step: int, first: int) -> tuple[Tensor, Targets]:
        config, group = self.config, self.config.mixing_group
        ended = config.mix_epochs is not None and epoch >= config.mix_epochs
        if ended or not (config.mixup > 0 or config.cutmix > 0):
            return x, Targets(labels, labels, torch.ones(len(labels), device=self.device))
        mixing = draw_mixing(
            units(first, len(x), group, config.mix_mode),
            seed=self.seed,
            step=step,
            size=x.shape[-1],
            mixup=config.mixup,
            cutmix=config.cutmix,
            prob=config.mix_prob,
            switch_prob=config.switch_prob,
        )
        mixing = Mixing(*(self._move(column) for column in mixing))
        return self.mix_images(x, mixing, group), Targets(labels, mirrored(labels, group), mixing.lam)

    def _move(self, tensor: Tensor) -> Tensor:
        """To the device without waiting for it."""
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

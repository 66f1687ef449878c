"""From uint8 batches to what the network and the loss want: distort, normalise, erase, mix; in timm's order.

Two halves: `Augment.draw` decides everything, on the CPU, as a function of the samples' keys, the epoch, the step and
the size; `Augment.apply` does it, on the device, which is never asked for anything.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from gab.augment import jitter, randaugment
from gab.augment.erasing import Boxes, draw_boxes, erase
from gab.augment.mixing import Mixing, draw_mixing, mirrored, mix_images, units
from gab.augment.operations import KINDS, Layer, Work, apply, plan
from gab.config import AugmentConfig
from gab.transfer import to_device

_DRAWS = 2**14  # samples among which every operation of a recipe appears
_UNLIKE = (5, 7, 11)  # numbers of boxes: PyTorch takes dimensions that are equal at first to be equal for ever


class Targets(NamedTuple):
    """Labels of every sample and of its partner in the mix; lam is the weight of its own."""

    labels: Tensor  # (B,) int64
    partners: Tensor  # (B,) int64
    lam: Tensor  # (B,) float32


class Drawn(NamedTuple):
    """What happens to a micro-batch."""

    works: list[Work]  # on uint8 images, one after another
    boxes: Boxes | None  # to erase
    mixing: Mixing | None


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 (B, 3, S, S) to float32 with the given mean and standard deviation (3,) of values in [0, 1]."""
    scale, shift = 1 / (255 * std), mean / std
    return (images * scale.view(-1, 1, 1)).sub_(shift.view(-1, 1, 1))


def centre(images: Tensor, size: int) -> Tensor:
    """The middle `size` pixels of images (B, 3, S, S) that are larger."""
    first = round((images.shape[-1] - size) / 2)
    return images[..., first : first + size, first : first + size]


class Augment:
    """The augmentation of one run.

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

    def __call__(
        self, images: Tensor, labels: Tensor, indices: Tensor, *, epoch: int, step: int, first: int
    ) -> tuple[Tensor, Targets]:
        """Both halves, one after the other; arguments as theirs."""
        drawn = self.draw(indices, size=images.shape[-1], epoch=epoch, step=step, first=first)
        return self.apply(images, labels, to_device(drawn, self.device))

    def draw(self, indices: Tensor, *, size: int, epoch: int, step: int, first: int) -> Drawn:
        """Decide what happens to a micro-batch, on the CPU.

        Args:
            indices: int64 (B,), the samples' keys.
            size: of the images that come, in pixels.
            first: position of the first sample in the global batch, a multiple of the mixing group.
        """
        config, works, boxes, mixing = self.config, [], None, None
        for layer in self.layers(indices, epoch):
            works += plan(layer, size)
        size = self.cut or size
        if config.erase_prob > 0:
            boxes = draw_boxes(indices, seed=self.seed, epoch=epoch, size=size, prob=config.erase_prob)
        ended = config.mix_epochs is not None and epoch >= config.mix_epochs
        if (config.mixup > 0 or config.cutmix > 0) and not ended:
            mixing = draw_mixing(
                units(first, len(indices), config.mixing_group, config.mix_mode),
                seed=self.seed,
                step=step,
                size=size,
                mixup=config.mixup,
                cutmix=config.cutmix,
                prob=config.mix_prob,
                switch_prob=config.switch_prob,
            )
        return Drawn(works, boxes, mixing)

    @torch.no_grad()
    def apply(self, images: Tensor, labels: Tensor, drawn: Drawn) -> tuple[Tensor, Targets]:
        """Do what was drawn. Everything lies on the device.

        Args:
            images, labels: uint8 (B, 3, S, S) and int64 (B,).
        """
        if drawn.works:
            images = images.clone(memory_format=torch.contiguous_format)
            apply(images, drawn.works, self.kinds)
        x = self.normalize(images if self.cut is None else centre(images, self.cut), self.mean, self.std)
        if drawn.boxes is not None and drawn.boxes.pixels:  # where it is nothing, no kernel is needed
            x = self.erase(x, *drawn.boxes)
        if drawn.mixing is None:
            return x, Targets(labels, labels, torch.ones(len(labels), device=self.device))
        group = self.config.mixing_group
        return self.mix_images(x, drawn.mixing, group), Targets(labels, mirrored(labels, group), drawn.mixing.lam)

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
                apply(images, to_device(plan(once, size), self.device), self.kinds)
        if self.config.erase_prob > 0:
            x = torch.zeros(count, 3, self.cut or size, self.cut or size, device=self.device)
            rows = next(n for n in _UNLIKE if n not in x.shape)
            drawn = torch.zeros(rows, dtype=torch.int64), torch.tensor([[0, 1, 0, 2]] * rows), torch.arange(rows)
            self.erase(x, *to_device(Boxes(*drawn, pixels=2 * rows), self.device))

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

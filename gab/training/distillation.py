"""A teacher whose predictions the distillation head learns.

"Training data-efficient image transformers & distillation through attention" (Touvron et al., ICML 2021), section 3.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gab.config import DistillationConfig
from gab.errors import UserError
from gab.models.build import check_name, variant
from gab.models.convert import convert
from gab.models.weights import published, read
from gab.training.digest import content_digest
from gab.training.flops import macs
from gab.training.interfaces import Settings
from gab.training.sizes import trained_sizes

KINDS = ("hard", "soft")


class Teacher:
    """A network of timm in evaluation mode, which sees the images that the student sees, mixed and erased as they are.

    Args:
        network: with its weights, on the device.
        mean, std: what the student's images are normalised by; where the teacher's differ, it gets them by its own.
        bf16: whether it computes in bfloat16, as the student.
    """

    def __init__(
        self, config: DistillationConfig, network: nn.Module, *, mean: list[float], std: list[float], bf16: bool
    ):
        self.config, self.network, self.bf16 = config, network.eval().requires_grad_(False), bf16
        device = next(network.parameters()).device
        cfg: dict[str, Any] = network.pretrained_cfg  # type: ignore[assignment]
        given = [torch.tensor(v, device=device).view(-1, 1, 1) for v in (mean, std)]
        own = [torch.tensor(v, device=device).view(-1, 1, 1) for v in (cfg["mean"], cfg["std"])]
        self.same = all(torch.equal(a, b) for a, b in zip(given, own, strict=True))
        self.scale = given[1] / own[1]
        self.shift = (given[0] - own[0]) / own[1]
        self.digest = content_digest(network.state_dict())

    def describe(self) -> str:
        """One line for the log."""
        images = "" if self.same else ", images normalised by its own mean and standard deviation"
        return (
            f"teacher:    {self.config.teacher}, weights {self.digest}, {self.config.kind} labels with weight "
            f"{self.config.alpha:g}{images}"
        )

    def macs(self, image_size: int) -> int:
        """Multiply-accumulates of one image of `image_size` pixels."""
        return macs(self.network, image_size)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """The teacher's float32 logits (B, classes) for the student's normalised images (B, 3, S, S)."""
        if not self.same:
            images = images * self.scale + self.shift
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            return self.network(images).float()

    def loss(self, logits: Tensor, images: Tensor) -> Tensor:
        """The loss of the distillation head's logits (B, classes).

        `hard`: cross-entropy with the teacher's class (equation 3); `soft`: the divergence from its distribution at a
        temperature, times the temperature's square (equation 2), a mean over samples.
        """
        taught = self.logits(images)
        if self.config.kind == "hard":
            return F.cross_entropy(logits.float(), taught.argmax(dim=1))
        heat = self.config.temperature
        own, taught = ((z.float() / heat).log_softmax(dim=1) for z in (logits, taught))
        return heat**2 * F.kl_div(own, taught, log_target=True, reduction="batchmean")


def check_size(teacher: str, sizes: Iterable[int], own: int | None = None) -> None:
    """Refuse a network of timm for images of other sizes than the one that it is made for.

    Args:
        sizes: sides of the student's images in pixels.
        own: of the network, where its weights show another than its name.

    Raises:
        UserError: it works at one size alone, and timm does not know the name.
    """
    check_name(teacher)
    cfg = timm.get_pretrained_cfg(teacher)
    if cfg is None or not cfg.fixed_input_size:
        return
    own = own or cfg.input_size[-1]
    if others := sorted({*sizes} - {own}):
        raise UserError(
            f"the teacher {teacher} works at {own} pixels only, and the run trains at "
            f"{', '.join(map(str, others))}: set data.image_size={own} without train.sizes, or another "
            "distillation.teacher"
        )


def make_teacher(config: Settings, student: nn.Module, num_classes: int, device: torch.device) -> Teacher:
    """The teacher that a run's config names, ready to be asked.

    Raises:
        UserError: the student has no second head to learn with, or as `load_teacher`.
    """
    if not hasattr(student, "set_distilled_training"):
        raise UserError(
            f"distillation.teacher needs a network with a head for it, which {variant(config.model)} lacks: set "
            "model=deit_t16_distilled, or model.name to a distilled one of timm"
        )
    sizes = trained_sizes(config.train, config.data.image_size)
    network = load_teacher(config.distillation, num_classes, sizes).to(device)
    bf16 = config.train.precision == "bf16"
    teacher = Teacher(config.distillation, network, mean=config.data.mean, std=config.data.std, bf16=bf16)
    if config.run.compile == "true":
        network.compile()
    return teacher


def load_teacher(config: DistillationConfig, num_classes: int, sizes: Iterable[int] = ()) -> nn.Module:
    """The network that `config` names, with timm's weights or those of its file, for images of `sizes` pixels.

    Raises:
        UserError: there is no such network or file, it does not fit, or it has other classes.
    """
    assert config.teacher is not None
    if config.weights is None:
        network = published(config.teacher)
    else:
        check_name(config.teacher)
        found = convert(read(Path(config.weights)), config.teacher)
        check_size(config.teacher, sizes, found.options.get("img_size"))
        network = timm.create_model(config.teacher, **found.options)
        network.load_state_dict(found.weights)
    if network.num_classes != num_classes:
        raise UserError(
            f"the teacher {config.teacher} has {network.num_classes:,} classes, the data set has "
            f"{num_classes:,}: set distillation.weights to a file of one that was trained on this data set"
        )
    return network

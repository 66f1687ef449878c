"""What a step makes smaller: the loss of mixed labels, and beside it the agreement with a teacher."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from gab.augment import Targets
from gab.training.distillation import Teacher

LOSSES = ("ce", "bce")


def mixed_cross_entropy(logits: Tensor, targets: Targets, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy against mixed, smoothed labels; equal to that against the dense soft labels.

    In float32. The logits (B, classes) are read once, and what is then picked from them is (B,).
    """
    log_p = logits.log_softmax(dim=-1, dtype=torch.float32)
    own, partner = (F.nll_loss(log_p, labels, reduction="none") for labels in (targets.labels, targets.partners))
    losses = torch.lerp(partner, own, targets.lam)
    if label_smoothing:
        losses = torch.lerp(losses, -log_p.mean(dim=-1), label_smoothing)
    return losses.mean()


def mixed_binary_cross_entropy(logits: Tensor, targets: Targets) -> Tensor:
    """Mean over samples and classes of the binary cross-entropy; a mixed image belongs wholly to both of its classes.

    "DeiT III: Revenge of the ViT" (ECCV 2022), section 3.
    """
    wanted = torch.zeros_like(logits, dtype=torch.float32)
    for labels, share in ((targets.labels, targets.lam), (targets.partners, 1 - targets.lam)):
        wanted.scatter_reduce_(1, labels[:, None], (share > 0).float()[:, None], "amax")
    return F.binary_cross_entropy_with_logits(logits.float(), wanted)


class Objective:
    """The loss of a (micro-)batch.

    Args:
        loss: `ce`, with label smoothing, or `bce`, which takes none.
        teacher: whose predictions the distillation head learns; None where there is none.
        compile: make kernels of the loss against the labels, for GPUs.
    """

    def __init__(self, loss: str, label_smoothing: float, teacher: Teacher | None = None, *, compile: bool = False):
        self.teacher = teacher
        cross_entropy = partial(mixed_cross_entropy, label_smoothing=label_smoothing)
        base = mixed_binary_cross_entropy if loss == "bce" else cross_entropy
        self.base: Callable[[Tensor, Targets], Tensor] = torch.compile(base) if compile else base

    def __call__(self, output: Tensor | tuple[Tensor, Tensor], targets: Targets, images: Tensor) -> Tensor:
        """The loss () of what the network makes of `images` (B, 3, S, S), normalised.

        Args:
            output: logits (B, classes), with a teacher those of the class head and those of the distillation head.
        """
        if self.teacher is None:
            assert isinstance(output, Tensor)
            return self.base(output, targets)
        logits, distilled = output
        alpha = self.teacher.config.alpha
        return (1 - alpha) * self.base(logits, targets) + alpha * self.teacher.loss(distilled, images)

"""What a step makes smaller: the loss of mixed labels, and beside it the agreement with a teacher."""

import torch
import torch.nn.functional as F
from torch import Tensor

from gab.augment import Targets, mixed_cross_entropy
from gab.training.distillation import Teacher

LOSSES = ("ce", "bce")


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
    """

    def __init__(self, loss: str, label_smoothing: float, teacher: Teacher | None = None):
        self.loss, self.label_smoothing, self.teacher = loss, label_smoothing, teacher

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

    def base(self, logits: Tensor, targets: Targets) -> Tensor:
        """Against the labels."""
        if self.loss == "bce":
            return mixed_binary_cross_entropy(logits, targets)
        return mixed_cross_entropy(logits, targets, self.label_smoothing)

"""Images that say what a network shall answer, and the network that reads them: every score is known beforehand.

The upper half of an image has the colour of the first choice among 1000 classes, the lower half that of the second: a
digit of the class per channel, ten levels apart enough for JPEG.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

FIRST, STEP = 12, 25  # grey level of digit 0, and between two digits
default_cfgs = generate_default_cfgs({"colours": {"input_size": (3, 32, 32), "num_classes": 1000}})


def pixels(best: int, second: int = 0, size: int = 32) -> np.ndarray:
    """An image (size, size, 3) that is answered by `best` and then by `second`."""
    colours = [[FIRST + STEP * int(digit) for digit in f"{number:03d}"] for number in (best, second)]
    return np.repeat(np.uint8(colours), size // 2, axis=0)[:, None].repeat(size, axis=1)


def paint(path: Path, best: int, second: int = 0) -> None:
    """Writes such an image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(best, second)).save(path, **({} if path.suffix == ".png" else {"format": "JPEG"}))


class Colours(nn.Module):
    """Reads images that were normalised by mean and deviation 1/2."""

    def __init__(self, num_classes: int = 1000, img_size: int = 32, in_chans: int = 3):
        super().__init__()
        self.num_classes = num_classes
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) to logits (B, classes): 2 for the first choice, 1 for the second."""
        height, logits = x.shape[2], x.new_zeros(len(x), self.num_classes)
        for rows, value in ((slice(height * 5 // 8, height * 7 // 8), 1), (slice(height // 8, height * 3 // 8), 2)):
            levels = 127.5 * (x[:, :, rows].mean((2, 3)) + 1)
            digits = ((levels - FIRST) / STEP).round().long()
            classes = digits @ torch.tensor([100, 10, 1], device=x.device)
            logits.scatter_(1, (classes % self.num_classes)[:, None], float(value))
        return logits * self.scale


@register_model
def colours(pretrained: bool = False, **kwargs: Any) -> Colours:
    """The network under its name."""
    return build_model_with_cfg(Colours, "colours", pretrained, **kwargs)

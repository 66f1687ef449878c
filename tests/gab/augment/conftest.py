"""Real photographs, and images that are hard for tables."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor


@pytest.fixture(scope="session")
def photos() -> Callable[[int], Tensor]:
    """`photos(size)`: uint8 (6, 3, size, size): windows of two photographs, one colour, few levels, and noise."""
    china, flower = load_sample_images().images

    def make(size: int) -> Tensor:
        windows = [
            photo[top : top + size, 150 : 150 + size] for photo, top in ((china, 20), (china, 190), (flower, 90))
        ]
        random = np.random.default_rng(size)
        few = random.choice([3, 90, 91, 200], (size, size, 3), p=[0.02, 0.5, 0.4, 0.08])
        noise = random.integers(0, 256, (size, size, 3))
        images = np.stack([*windows, np.full((size, size, 3), 77), few, noise]).astype(np.uint8)
        return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()

    return make

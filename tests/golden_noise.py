"""Noise in the place of released weights, which nobody has published for most of these networks.

`golden/*.json` hold what the official implementations answer when every tensor is filled by `noise` from its official
name and shape; source and commit of each are in the file.
"""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"
EMBEDDINGS = (
    "pos_embed",
    "positional_emb",
    "cls_token",
    "class_emb",
    "dist_token",
    "relative_position_bias_table",
)


def noise(name: str, shape: list[int]) -> Tensor:
    """A tensor that depends on name and shape alone, of a size that keeps activations near one."""
    drawn = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    return torch.from_numpy(np.asarray(_scaled(name, drawn), dtype=np.float32))


def _scaled(name: str, drawn: np.ndarray) -> np.ndarray:
    if name.endswith("running_var"):
        return 1 + 0.1 * abs(drawn)
    if name.endswith(".attn.w"):
        return drawn
    if name.endswith(EMBEDDINGS):
        return 0.5 * drawn
    if name.endswith("logit_scale"):
        return 2 + 0.1 * drawn
    if drawn.ndim < 2:
        return 1 + 0.2 * drawn if name.endswith("weight") else 0.1 * drawn
    return 0.5 * drawn / np.sqrt(np.prod(drawn.shape[1:]))


def fill(shapes: dict[str, Any]) -> dict[str, Tensor]:
    """An official state dict of noise."""
    return {name: noise(name, shape) for name, shape in shapes.items()}


def images(size: int, batch: int = 2) -> Tensor:
    """(batch, 3, size, size), as the golden files use them."""
    return torch.from_numpy(np.random.default_rng(0).standard_normal((batch, 3, size, size)).astype(np.float32))


def load(name: str) -> dict[str, Any]:
    """One golden file."""
    return json.loads((GOLDEN / f"{name}.json").read_text())

"""Short fingerprints by which two records can prove that their runs started alike."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def weights_digest(model: nn.Module) -> dict[str, str]:
    """Eight hexadecimal digits per tensor of the state, by name: equal for equal bits."""
    return {
        name: hashlib.blake2b(tensor.detach().cpu().contiguous().numpy().tobytes(), digest_size=4).hexdigest()
        for name, tensor in model.state_dict().items()
    }


def content_digest(weights: Mapping[str, Tensor]) -> str:
    """Sixteen hexadecimal digits of all tensors with their names, shapes and types, whatever file they came from."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

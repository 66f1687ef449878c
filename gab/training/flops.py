"""Arithmetic of a network, and how much of the device's ceiling it reaches."""

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gab.attention.choice import use

# Dense bf16 peak of one device, FLOP/s, as published by NVIDIA; the first name that occurs in the device's wins.
_PEAK = {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "B200": 2250e12, "A100": 312e12,
         "L40S": 362e12, "A10G": 70e12, "4090": 165e12, "3090": 71e12}  # fmt: skip

# A train step of ViT-5-Small, as large as ViT-S, on one H100 in bf16, compiled: images/s and MACs of an image
# (NVIDIA-BioNeMo/nvSubquadratic, benchmarks/README.md). What is expected of other networks and GPUs comes from it.
RATE, RATE_MACS = 7716.0, 4.61e9
TYPICAL_MFU = 6 * RATE * RATE_MACS / _PEAK["H100"]  # 0.216


def macs(model: nn.Module, image_size: int) -> int:
    """Multiply-accumulates of one image's forward pass: matrix products and convolutions, attention included.

    A network on the meta device, which has no weights, is counted there.
    """
    device = "meta" if next(model.parameters()).is_meta else "cpu"
    copied = copy.deepcopy(model).to(device).eval().requires_grad_(False)
    use(copied, "sdpa")  # which the counter knows
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        copied(torch.zeros(1, 3, image_size, image_size, device=device))
    return counter.get_total_flops() // 2


def peak_flops(device: torch.device) -> float | None:
    """The device's bf16 peak, or None where it is unknown (CPU, unlisted GPU)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in _PEAK.items() if key in name), None)


def mfu(images_per_second: float, macs_per_image: int, peak: float | None, processes: int) -> float | None:
    """Model FLOPs utilisation: 6 FLOPs per forward MAC for a train step, over the peak of all devices."""
    return images_per_second * 6 * macs_per_image / (peak * processes) if peak else None

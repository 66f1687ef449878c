"""Where half precision will not do."""

import contextlib

import torch


def no_autocast(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Autocast off for what runs on `device`; the meta device, where only shapes are computed, has none."""
    return contextlib.nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)

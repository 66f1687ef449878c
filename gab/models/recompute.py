"""Gradient checkpointing under which BatchNorm sees every batch once."""

import contextlib
from collections.abc import Iterator

import torch
from timm.models import checkpoint
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def recomputed(block: nn.Module, *args: Tensor | None) -> Tensor:
    """`block(*args)`, whose activations are computed again in the backward pass instead of being kept."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    if not norms or torch.compiler.is_compiling():  # a compiled graph keeps such updates out of what it repeats
        return checkpoint(block, *args)
    return checkpoint(block, *args, context_fn=lambda: (contextlib.nullcontext(), _unseen(norms)))


@contextlib.contextmanager
def _unseen(norms: list[_BatchNorm]) -> Iterator[None]:
    """Within it, `norms` leave their statistics and counters as they are."""
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, _, count in before:
        norm.momentum = 0.0
        norm.num_batches_tracked = None if count is None else count.clone()  # counts here, and is thrown away
    try:
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum, norm.num_batches_tracked = momentum, count

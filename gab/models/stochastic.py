"""Drop-path, bias and attention dropout whose draws belong to the sample or the step, not to a carried random state.

The trainer attaches keys to a network once (`attach_keys`) and sets them before every micro-batch. Layers without keys
draw from PyTorch's global generator, as timm's and PyTorch's do. Other element-wise dropout stays PyTorch's own: the
trainer seeds the global generator for each (seed, step, process, micro-batch).
"""

import torch
import torch.nn.functional as F
from timm.layers import DropPath as TimmDropPath
from timm.layers import drop_path
from torch import Tensor, nn

from gab.attention.dropout import row_numbers, survivors
from gab.random import fold_in, hash_key, uniform


class Keyed(nn.Module):
    """A layer that draws from `keys`, an int64 tensor shared with all layers of its kind, and its own `salt`."""

    keys: Tensor | None = None
    salt: int = 0
    per_sample = False  # whether keys are those of the samples, or of the step

    def __init__(self, p: float = 0.0):
        super().__init__()
        self.p = p

    def extra_repr(self) -> str:
        return f"p={self.p}"


class DropPath(Keyed):
    """Stochastic depth (Huang et al., ECCV 2016): drops the whole branch of a sample with probability p.

    With keys (B,) the draw is a function of (seed, epoch, sample index, layer) and so the same for any number of
    processes and micro-batches. Input and output: (B, ...).
    """

    per_sample = True

    def forward(self, x: Tensor) -> Tensor:
        if self.p == 0.0 or not self.training:
            return x
        if self.keys is None:
            return drop_path(x, self.p, training=True)
        keep = uniform(fold_in(self.keys, self.salt)) >= self.p
        return x * (keep / (1 - self.p)).to(x.dtype).view(-1, *[1] * (x.ndim - 1))


class BiasDropout(Keyed):
    """Dropout on something that every sample shares, such as the hidden layer of a relative-position MLP.

    With keys () the mask is a function of (seed, step, layer, element), so all processes and micro-batches of a step
    agree on the bias. Any shape.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.p == 0.0 or not self.training:
            return x
        if self.keys is None:
            return F.dropout(x, self.p)
        element = torch.arange(x.numel(), device=x.device)
        keep = uniform(fold_in(fold_in(self.keys, self.salt), element)) >= self.p
        return x * (keep / (1 - self.p)).to(x.dtype).view(x.shape)


class AttentionDropout(Keyed):
    """Dropout of attention weights, each with probability p.

    With keys (B,) a draw is a function of (seed, epoch, sample index, layer, head, query, key), and so the same for any
    number of processes and micro-batches, and for every way to compute attention (`gab.attention`). Input and output:
    (B, H, N, N).
    """

    per_sample = True

    def row_numbers(self, batch: int, heads: int, tokens: int, device: torch.device) -> Tensor:
        """What decides which weights survive (`gab.attention.dropout`), int32 (B, H, N)."""
        keys = torch.randint(2**62, (batch,), device=device) if self.keys is None else self.keys
        return row_numbers(keys, self.salt, heads, tokens)

    def forward(self, weights: Tensor) -> Tensor:
        if self.p == 0.0 or not self.training:
            return weights
        batch, heads, tokens, keys = weights.shape
        rows = self.row_numbers(batch, heads, tokens, weights.device)
        return torch.where(survivors(rows, keys, self.p), weights * (1 / (1 - self.p)), 0.0)


class Keys:
    """The keys of the micro-batch at hand, in two tensors that stay where they are, as compiled graphs want it."""

    def __init__(self, model: nn.Module, seed: int, device: torch.device):
        self.seed, self.device = seed, device
        self.step = torch.zeros((), dtype=torch.int64, device=device)
        self.per_sample: list[Keyed] = []
        for name, module in model.named_modules():
            if isinstance(module, Keyed):
                module.salt = hash_key(name)
                if module.per_sample:
                    self.per_sample.append(module)
                else:
                    module.keys = self.step
        self.samples = torch.zeros(0, dtype=torch.int64, device=device)

    def draw(self, epoch: int, indices: Tensor) -> Tensor:
        """Keys (B,) of the samples `indices` (B,) of `epoch`."""
        return fold_in(hash_key("drop_path", self.seed, epoch), indices)

    def take(self, step: int, samples: Tensor) -> None:
        """Use the keys `samples` (B,), of `draw`, and those of the global step `step`."""
        if len(samples) != len(self.samples):
            self.samples = torch.zeros(len(samples), dtype=torch.int64, device=self.device)
            for module in self.per_sample:
                module.keys = self.samples
        self.samples.copy_(samples, non_blocking=True)
        self.step.fill_(hash_key("bias_dropout", self.seed, step))

    def set(self, epoch: int, step: int, indices: Tensor) -> None:
        """Draw and take the keys of the samples `indices` (B,) of `epoch` at the global step `step`."""
        self.take(step, self.draw(epoch, indices))


def attach_keys(model: nn.Module, seed: int, device: torch.device) -> Keys:
    """Make every draw of `model` that can be a function of keys one; timm's drop-paths are exchanged for ours."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, TimmDropPath):
                setattr(parent, name, DropPath(child.drop_prob or 0.0))
    return Keys(model, seed, device)

"""The learning rate as a pure function of the step."""

import math

from gab.config import OptimConfig


def effective_lr(optim: OptimConfig, batch_size: int) -> float:
    """The peak learning rate; scaled linearly by the batch only where `optim.lr_batch` asks for it."""
    return optim.lr * (batch_size / optim.lr_batch if optim.lr_batch else 1.0)


def learning_rate(step: int, *, optim: OptimConfig, batch_size: int, steps_per_epoch: int, epochs: int) -> float:
    """Learning rate of global step `step`, counted from 0.

    Linear warm-up from `warmup_lr`, half a cosine to `min_lr`, then `min_lr` for the cooldown. With
    `cosine_from=warmup` the cosine lies between the two; with `start` it runs from step 0 and the warm-up replaces its
    beginning, as in timm 0.6.7. It changes from step to step, or with `lr_per=epoch` from epoch to epoch, where the
    first one's is `warmup_lr`. A run shorter than warm-up and cooldown shortens these.
    """
    if optim.lr_per == "epoch":
        step -= step % steps_per_epoch
    peak, total = effective_lr(optim, batch_size), epochs * steps_per_epoch
    warmup = min(optim.warmup_epochs * steps_per_epoch, 0.5 * total)
    cooldown = min(optim.cooldown_epochs * steps_per_epoch, 0.25 * total)
    if step < warmup:
        return optim.warmup_lr + (peak - optim.warmup_lr) * step / warmup
    begin = warmup if optim.cosine_from == "warmup" else 0.0
    progress = min((step - begin) / max(total - begin - cooldown, 1.0), 1.0)
    return optim.min_lr + 0.5 * (peak - optim.min_lr) * (1 + math.cos(math.pi * progress))

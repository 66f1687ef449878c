"""`run.dry=true`: what a run would be, before a GPU is booked."""

from typing import Any

from torch import nn

from gab.training.checkpoint import expected_bytes
from gab.training.checkpoint_store import most_files
from gab.training.flops import macs
from gab.training.interfaces import Settings
from gab.training.parameter_groups import parameter_groups
from gab.training.schedule import effective_lr


def report(config: Settings, model: nn.Module, *, variant: str, train_images: int, processes: int) -> str:
    """A table of sizes, steps, rates, disk and hours.

    Args:
        config: the run's config, filled, without `auto`.
        model: initialised.
        train_images: images of an epoch, before the tail that fills no batch is left out.
    """
    batch, epochs = config.train.batch_size, config.train.epochs
    parameters = sum(p.numel() for p in model.parameters())
    steps = min(train_images // batch, config.train.max_steps or train_images // batch)
    size = expected_bytes(parameters, ema=bool(config.train.ema_decay))
    files = most_files(config.checkpoint.keep)
    rate = config.run.images_per_second
    micro = config.run.micro_batch or batch // processes
    rows = {
        "variant": variant,
        "parameters": f"{parameters:,}",
        "MACs per image": f"{macs(model, config.data.image_size) / 1e9:.3f} G at {config.data.image_size} px",
        "processes": f"{processes}, micro-batch {micro} of {batch // processes} images each",
        "batch": f"{batch} (global)",
        "steps": f"{steps:,} an epoch, {steps * epochs:,} in all (train.epochs={epochs})",
        **_sizes(config.train.sizes),
        "optimiser": config.optim.name,
        "learning rate": _learning_rate(config, batch),
        **_short_warmup(config),
        **{f"group {group['name']}": _group(group) for group in parameter_groups(model, config.optim)},
        "disk": f"{size / 1e9:.2f} GB a checkpoint, {files * size / 1e9:.2f} GB at most for {files} of them: "
        f"last, best, {config.checkpoint.keep} older, 1 being written",
        "time": f"{steps * batch * epochs / rate / 3600:.1f} h at {rate:,.0f} images/s (run.images_per_second)",
    }
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


def _learning_rate(config: Settings, batch: int) -> str:
    optim, peak = config.optim, effective_lr(config.optim, batch)
    scaled = f" = {optim.lr:g} x {batch} / {optim.lr_batch}" if optim.lr_batch else " (not scaled with the batch)"
    return (
        f"{peak:g}{scaled}, warm-up {optim.warmup_epochs:g} epochs from {optim.warmup_lr:g}, cosine to "
        f"{optim.min_lr:g} from {optim.lr_per} to {optim.lr_per}"
    )


def _short_warmup(config: Settings) -> dict[str, str]:
    """A row where the run is too short for its warm-up (`gab.training.schedule`)."""
    optim, epochs = config.optim, config.train.epochs
    if optim.warmup_epochs and optim.lr_per == "epoch" and epochs == 1:
        text = f"the rate never leaves it: {optim.warmup_lr:g} throughout, since it changes from epoch to epoch"
    elif optim.warmup_epochs > epochs / 2:
        text = "cut to half of the run"
    else:
        return {}
    return {"warm-up": f"{text} (optim.warmup_epochs={optim.warmup_epochs:g}, train.epochs={epochs})"}


def _sizes(sizes: dict[int, int]) -> dict[str, str]:
    """A row where training changes the size of its images."""
    return {"sizes": ", ".join(f"{sizes[e]} px from epoch {e}" for e in sorted(sizes))} if sizes else {}


def _group(group: dict[str, Any]) -> str:
    count = sum(p.numel() for p in group["params"])
    scale = f", learning rate x {group['lr_scale']:g}" if group["lr_scale"] != 1 else ""
    return f"{len(group['params'])} tensors, {count:,} parameters, weight decay {group['weight_decay']:g}{scale}"

"""What no single section can know: the settings that must fit one another. Checked before anything is read or built."""

import torch
from omegaconf import DictConfig

from conf.schema import Config, EvaluateConfig
from gab.config import TimmConfig
from gab.distributed.processes import choose_device
from gab.errors import UserError
from gab.tracking.session import resolve_mode


def fill_in(cfg: DictConfig, device: str) -> None:
    """Decide `auto` where it depends on the device, so that the stored config says what was done."""
    if cfg.train.precision == "auto":
        bf16 = device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        cfg.train.precision = "bf16" if bf16 else "fp32"
    cfg.run.compile = cfg.run.compile.lower()  # a command line's true is a boolean, which the schema turns into True
    if cfg.run.compile == "auto":
        cfg.run.compile = "true" if device == "cuda" else "false"


def check(config: Config, processes: int) -> None:
    """Refuse settings that do not fit.

    Raises:
        UserError: the first misfit, with what would mend it.
    """
    _choice("train.precision", config.train.precision, ("auto", "bf16", "fp32"))
    _choice("run.compile", config.run.compile, ("auto", "true", "false"))
    _choice("optim.decay", config.optim.decay, ("ours", "released", "all"))
    _choice("optim.lr_per", config.optim.lr_per, ("step", "epoch"))
    _choice("optim.cosine_from", config.optim.cosine_from, ("warmup", "start"))
    _choice("optim.name", config.optim.name, ("adamw", "sgd", "lamb"))
    for section, keys in _COUNTS.items():
        for key in keys:
            _positive(f"{section}.{key}", getattr(getattr(config, section), key))
    for key, value in {
        "checkpoint.keep": config.checkpoint.keep,
        "train.skip_non_finite": config.train.skip_non_finite,
    }.items():
        if value < 0:
            raise UserError(f"{key}={value}: give a number of at least 0")
    minutes = config.checkpoint.every_minutes
    if minutes is not None and minutes <= 0:
        raise UserError(f"checkpoint.every_minutes={minutes:g}: give a positive number, or null for none by time")
    resolve_mode(config.tracking)
    if config.train.sync_batchnorm and processes > 1 and choose_device(config.run.device) == "cpu":
        raise UserError("train.sync_batchnorm=true needs GPUs, PyTorch has no such layer for CPU: set it to false")
    _batch(config, processes)


def check_evaluation(config: EvaluateConfig) -> None:
    """Refuse settings of an evaluation that cannot be.

    Raises:
        UserError: the first of them, with what would mend it.
    """
    if (config.checkpoint is None) == (config.model is None):
        raise UserError("give either checkpoint=FILE, or model=timm model.name=NAME for published weights")
    if config.checkpoint is None and not isinstance(config.model, TimmConfig):
        raise UserError(
            "only networks of timm have published weights: give checkpoint=FILE or model=timm model.name=NAME"
        )
    if config.checkpoint is None and config.data is None:
        raise UserError("say on which images: add data=NAME (a file of conf/data)")
    _choice("eval.split", config.eval.split, ("val", "train"))
    _choice("eval.weights", config.eval.weights, ("raw", "ema", "both"))
    _choice("eval.precision", config.eval.precision, ("fp32", "bf16"))
    for key in ("workers", "eval_batch"):
        _positive(f"run.{key}", getattr(config.run, key))


def _choice(key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(f"{key}={value} is unknown: choose one of {', '.join(known)}")


_COUNTS = {
    "train": ("epochs", "batch_size", "eval_every", "max_steps", "eval_images"),
    "augment": ("mixing_group",),
    "run": ("micro_batch", "workers", "log_every", "eval_batch"),
    "checkpoint": ("every_epochs", "every_steps"),
}


def _positive(key: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise UserError(f"{key}={value}: give a number of at least 1")


def _batch(config: Config, processes: int) -> None:
    """The global batch is cut into processes, these into micro-batches, these into mixing groups."""
    batch, micro = config.train.batch_size, config.run.micro_batch
    group = config.augment.mixing_group if config.augment.mixup > 0 or config.augment.cutmix > 0 else 1
    if batch % processes:
        near = batch // processes * processes or processes
        raise UserError(
            f"train.batch_size={batch} does not divide into {processes} processes: take train.batch_size={near}, "
            "or another run.processes"
        )
    share, what = batch // processes, f"each of {processes} processes" if processes > 1 else "the process"
    if micro and share % micro:
        divisors = [d for d in range(1, share + 1) if share % d == 0 and d <= micro]
        raise UserError(
            f"run.micro_batch={micro} does not divide the {share} images of {what}: take run.micro_batch={divisors[-1]}"
        )
    if (micro or share) % group:
        size = f"run.micro_batch={micro}" if micro else f"the {share} images of {what}"
        raise UserError(
            f"augment.mixing_group={group} does not divide {size}: choose a group that does, or another batch "
            "(augment.mixup=0 augment.cutmix=0 mixes nothing)"
        )
    if group > 1 and group * config.data.repeats > batch:
        raise UserError(
            f"data.repeats={config.data.repeats}: copies of an image would be mixed with one another, take "
            f"train.batch_size={group * config.data.repeats} or more, or a smaller augment.mixing_group"
        )

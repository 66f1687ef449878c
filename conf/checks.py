"""What no single section can know: the settings that must fit one another. Checked before anything is read or built."""

from dataclasses import replace
from inspect import signature

import torch
from omegaconf import DictConfig

from conf.schema import Config, EvaluateConfig
from gab.augment.check import check as check_augment
from gab.config import TimmConfig
from gab.distributed.processes import choose_device
from gab.errors import UserError
from gab.models import build, variant
from gab.tracking.session import resolve_mode
from gab.training.distillation import KINDS
from gab.training.init_from import FRESH
from gab.training.objective import LOSSES
from gab.training.optimizer import SKIPPING


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
    for section, keys in _COUNTS.items():
        for key in keys:
            _positive(f"{section}.{key}", getattr(getattr(config, section), key))
    for name, evaluator in config.evaluators.items():
        _positive(f"evaluators.{name}.every_epochs", getattr(evaluator, "every_epochs", None))
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
    check_augment(config.augment)
    if config.train.sync_batchnorm and processes > 1 and choose_device(config.run.device) == "cpu":
        raise UserError("train.sync_batchnorm=true needs GPUs, PyTorch has no such layer for CPU: set it to false")
    _optimisation(config)
    _start(config)
    _distillation(config)
    _sizes(config)
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
    _choice("eval.split", config.eval.split, ("val", "train", "test"))
    _choice("eval.weights", config.eval.weights, ("raw", "ema", "both"))
    _choice("eval.precision", config.eval.precision, ("fp32", "bf16"))
    for key in ("workers", "eval_batch"):
        _positive(f"run.{key}", getattr(config.run, key))
    if not config.evaluators:
        raise UserError("evaluators=[] looks at nothing: choose some of conf/evaluators, such as evaluators=[top1]")


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


def _optimisation(config: Config) -> None:
    """Optimiser, schedule, loss."""
    optim, train = config.optim, config.train
    _choice("optim.name", optim.name, ("adamw", "sgd", "lamb"))
    _choice("optim.decay", optim.decay, ("ours", "released", "all"))
    _choice("optim.lr_per", optim.lr_per, ("step", "epoch"))
    _choice("optim.cosine_from", optim.cosine_from, ("warmup", "start"))
    _choice("train.loss", train.loss, LOSSES)
    _choice("train.test", train.test, ("last", "best"))
    if not optim.lr > 0:
        raise UserError(f"optim.lr={optim.lr:g}: give a positive number")
    for key in ("warmup_lr", "min_lr", "warmup_epochs", "cooldown_epochs", "weight_decay"):
        if not getattr(optim, key) >= 0:
            raise UserError(f"optim.{key}={getattr(optim, key):g}: give a number of at least 0")
    if len(optim.betas) != 2 or not all(0 <= beta < 1 for beta in optim.betas):
        raise UserError(f"optim.betas={optim.betas}: give two numbers from 0 to below 1")
    for name, value in {"optim.momentum": optim.momentum, "train.ema_decay": train.ema_decay}.items():
        if value is not None and not 0 <= value < 1:
            raise UserError(f"{name}={value:g}: give a number from 0 to below 1")
    if optim.layer_decay is not None and not 0 < optim.layer_decay <= 1:
        raise UserError(f"optim.layer_decay={optim.layer_decay:g}: give a number above 0 and at most 1, or null")
    if train.skip_non_finite and optim.name not in SKIPPING:
        raise UserError(
            f"train.skip_non_finite={train.skip_non_finite}: only optim.name=adamw can leave steps out, set it to 0"
        )
    if train.loss == "bce" and config.augment.label_smoothing:
        raise UserError("train.loss=bce takes no label smoothing: set augment.label_smoothing=0")


def _start(config: Config) -> None:
    """Where the weights begin."""
    init, model = config.init, config.model
    _choice("init.weights", init.weights, ("raw", "ema"))
    for part in init.fresh:
        _choice("init.fresh", part, FRESH)
    if init.source is None:
        if init.fresh:
            raise UserError(f"init.fresh={init.fresh} without a source: everything starts anew then, leave it empty")
        return
    if isinstance(model, TimmConfig) and model.pretrained:
        raise UserError("init.source and model.pretrained=true both give weights: leave one of them out")
    if getattr(model, "rel_pos_start", "default") != "default" and "rel_pos" not in init.fresh:
        raise UserError(
            "model.rel_pos_start=gaussian would be lost to the relative bias of init.source: set init.fresh=[rel_pos]"
        )


def _distillation(config: Config) -> None:
    """A teacher, and a head that learns from it."""
    distillation, model = config.distillation, config.model
    _choice("distillation.kind", distillation.kind, KINDS)
    if not 0 <= distillation.alpha <= 1:
        raise UserError(f"distillation.alpha={distillation.alpha:g}: give a share between 0 and 1")
    if distillation.temperature <= 0:
        raise UserError(f"distillation.temperature={distillation.temperature:g}: give a positive number")
    if distillation.teacher is None:
        if distillation.weights is not None:
            raise UserError("distillation.weights without distillation.teacher: give the name of its network too")
        return
    if not isinstance(model, TimmConfig) and not getattr(model, "distillation_token", False):
        raise UserError(
            "distillation.teacher needs a network with a distillation token: set model=deit_t16_distilled or "
            "model.distillation_token=true"
        )


def _sizes(config: Config) -> None:
    """Images of other sizes for some epochs: the network must be possible at each, long before its epoch comes."""
    sizes = config.train.sizes
    if not sizes:
        return
    if config.data.crop.size is not None:
        raise UserError("train.sizes gives the crops their size: set data.crop.size=null")
    for epoch, size in sizes.items():
        if not 0 <= epoch < config.train.epochs or size < 1:
            raise UserError(
                f"+train.sizes={sizes}: give {{epoch: pixels}}, epochs from 0 to {config.train.epochs - 1} "
                "(train.epochs has their number)"
            )
    model = config.model
    if isinstance(model, TimmConfig):
        model = replace(model, pretrained=False)
    for size in sorted({*sizes.values(), config.data.image_size}):
        with torch.device("meta"):
            network = build(model, image_size=size, num_classes=2, seed=0)
        if not hasattr(network, "set_input_size") and network.pretrained_cfg["fixed_input_size"]:  # type: ignore[index]
            raise UserError(f"{variant(model)} stays at the size that it is built for: set train.sizes={{}}")
        if "window_size" in signature(getattr(network, "set_input_size", _sizes)).parameters:
            raise UserError(
                f"{variant(model)} has windows, whose size would change with the images': set train.sizes={{}}"
            )


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

"""What no single section can know: the settings that must fit one another. Checked before anything is read or built."""

from inspect import signature
from math import isfinite
from operator import attrgetter

import torch
from omegaconf import DictConfig

from conf.evaluation import require_imagenet
from conf.networks import without_weights
from conf.schema import Config, EvaluateConfig
from data import files
from data.config import DataConfig
from data.info import DataInfo
from gab.attention.choice import check as check_attention
from gab.augment.check import check as check_augment
from gab.config import AttentionDistanceConfig, ErfConfig, EvaluatorConfig, RollOutConfig, ScheduledConfig, TimmConfig
from gab.distributed.processes import choose_device
from gab.errors import UserError, check_at_least, check_choice, check_positive
from gab.evaluators.erf import ENOUGH
from gab.evaluators.readouts import READOUTS
from gab.evaluators.rollout import FUSIONS, MODES, ROWS
from gab.models import build, variant
from gab.tracking.figure_files import endings
from gab.tracking.session import resolve_mode
from gab.training.distillation import KINDS, check_size
from gab.training.init_from import FRESH
from gab.training.objective import LOSSES
from gab.training.optimizer import SKIPPING
from gab.training.sizes import trained_sizes


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
    check_choice("train.precision", config.train.precision, ("auto", "bf16", "fp32"))
    check_choice("run.compile", config.run.compile, ("auto", "true", "false"))
    check_attention(config.run.attention, choose_device(config.run.device))
    endings()  # GAB_FIGURES
    for section, keys in _COUNTS.items():
        for key in keys:
            check_at_least(f"{section}.{key}", getattr(getattr(config, section), key), 1)
    _evaluators(config.evaluators)
    for key, value in {
        "checkpoint.keep": config.checkpoint.keep,
        "train.skip_non_finite": config.train.skip_non_finite,
    }.items():
        check_at_least(key, value, 0)
    check_positive("checkpoint.every_minutes", config.checkpoint.every_minutes)
    check_positive("run.images_per_second", config.run.images_per_second)
    if not 0 <= config.seed < 2**63:
        raise UserError(f"seed={config.seed}: give a whole number from 0 to 2^63 - 1")
    _colours(config.data)
    resolve_mode(config.tracking)
    check_augment(config.augment)
    if config.train.sync_batchnorm and processes > 1 and choose_device(config.run.device) == "cpu":
        raise UserError("train.sync_batchnorm=true needs GPUs, PyTorch has no such layer for CPU: set it to false")
    if config.data.loader == "gpu" and config.run.device == "cpu":
        raise UserError(
            "data.loader=gpu decodes on the GPU of run.device=cuda: set data.loader=ffcv with run.device=cpu"
        )
    _optimisation(config)
    _start(config)
    _distillation(config)
    _unread(config)
    _sizes(config)
    _batch(config, processes)


def check_images(config: Config, images: DataInfo) -> None:
    """Refuse settings that do not fit the data set.

    Raises:
        UserError: it is smaller than a batch, lacks the test images that are wanted, or has not the classes of a set of
            `config.evaluators`.
    """
    name = f"data={config.data.name}"
    if images.train < config.train.batch_size:
        raise UserError(
            f"the {images.train:,} training images of {name} do not fill one batch: "
            f"lower train.batch_size={config.train.batch_size}"
        )
    if config.train.test == "best" and images.test is None:
        raise UserError(
            f"train.test=best is for test images, and {name} has none beside those to validate on: "
            "set train.test=last, data.split=pooled or data.holdout"
        )
    require_imagenet(config.evaluators, images.classes, name)


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
    check_choice("eval.split", config.eval.split, ("val", "train", "test"))
    check_choice("eval.weights", config.eval.weights, ("raw", "ema", "both"))
    check_choice("eval.precision", config.eval.precision, ("fp32", "bf16"))
    check_attention(config.run.attention, choose_device(config.run.device))
    endings()  # GAB_FIGURES
    for key in ("workers", "eval_batch"):
        check_at_least(f"run.{key}", getattr(config.run, key), 1)
    if config.data is not None:
        _colours(config.data)
    if not config.evaluators:
        raise UserError("evaluators=[] looks at nothing: choose some of conf/evaluators, such as evaluators=[top1]")
    _evaluators(config.evaluators)


_COUNTS = {
    "train": ("epochs", "batch_size", "eval_every", "max_steps", "eval_images"),
    "augment": ("mixing_group",),
    "run": ("micro_batch", "workers", "log_every", "eval_batch"),
    "checkpoint": ("every_epochs", "every_steps"),
}


def _evaluators(evaluators: dict[str, EvaluatorConfig]) -> None:
    """What looks at the network, before there is one."""
    for name, settings in evaluators.items():
        if isinstance(settings, ScheduledConfig):
            check_at_least(f"evaluators.{name}.every_epochs", settings.every_epochs, 1)
        if isinstance(settings, ErfConfig):
            check_choice(f"evaluators.{name}.readout", settings.readout, READOUTS)
            check_at_least(f"evaluators.{name}.batch_size", settings.batch_size, 1)
            if settings.images < ENOUGH:
                raise UserError(
                    f"evaluators.{name}.images={settings.images} are too few to fit a Gaussian to their field: give "
                    f"{ENOUGH} or more"
                )
        if isinstance(settings, AttentionDistanceConfig | RollOutConfig):
            check_at_least(f"evaluators.{name}.images", settings.images, 1)
        if isinstance(settings, AttentionDistanceConfig):
            check_at_least(f"evaluators.{name}.batch_size", settings.batch_size, 1)
        if isinstance(settings, RollOutConfig):
            _roll_out(f"evaluators.{name}", settings)


def _roll_out(key: str, settings: RollOutConfig) -> None:
    """Of an attention roll-out."""
    for name, known in (("row", ROWS), ("fusion", FUSIONS), ("mode", MODES)):
        check_choice(f"{key}.{name}", getattr(settings, name), known)
    check_at_least(f"{key}.start_layer", settings.start_layer, 1)
    if not 0 <= settings.discard_ratio < 1:
        raise UserError(f"{key}.discard_ratio={settings.discard_ratio:g}: give a share from 0 to less than 1")


def _colours(data: DataConfig) -> None:
    """What images are normalised by."""
    for key, values in {"mean": data.mean, "std": data.std}.items():
        if len(values) != 3 or not all(isfinite(value) for value in values):
            raise UserError(f"data.{key}={values}: give three numbers, for red, green and blue, of values in [0, 1]")
    if not min(data.std) > 0:
        raise UserError(f"data.std={data.std}: give positive numbers")


def _optimisation(config: Config) -> None:
    """Optimiser, schedule, loss."""
    optim, train = config.optim, config.train
    check_choice("optim.name", optim.name, ("adamw", "sgd", "lamb"))
    check_choice("optim.decay", optim.decay, ("ours", "released", "all"))
    check_choice("optim.lr_per", optim.lr_per, ("step", "epoch"))
    check_choice("optim.cosine_from", optim.cosine_from, ("warmup", "start"))
    check_choice("train.loss", train.loss, LOSSES)
    check_choice("train.test", train.test, ("last", "best"))
    for key in ("lr", "clip_grad"):
        check_positive(f"optim.{key}", getattr(optim, key))
    check_at_least("optim.lr_batch", optim.lr_batch, 1)
    rates = ("warmup_lr", "min_lr", "gaussian_lr_scale")
    for key in (*rates, "warmup_epochs", "cooldown_epochs", "weight_decay", "eps"):
        check_at_least(f"optim.{key}", getattr(optim, key), 0)
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
    check_choice("init.weights", init.weights, ("raw", "ema"))
    for part in init.fresh:
        check_choice("init.fresh", part, FRESH)
    if init.source is None:
        if init.fresh:
            raise UserError(f"init.fresh={init.fresh} without a source: everything starts anew then, leave it empty")
        if init.weights != "raw":
            raise UserError(f"init.weights={init.weights} is of the checkpoint init.source: give that, or leave it out")
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
    check_choice("distillation.kind", distillation.kind, KINDS)
    if not 0 <= distillation.alpha <= 1:
        raise UserError(f"distillation.alpha={distillation.alpha:g}: give a share between 0 and 1")
    check_positive("distillation.temperature", distillation.temperature)
    if distillation.teacher is None:
        if distillation.weights is not None:
            raise UserError("distillation.weights without distillation.teacher: give the name of its network too")
        return
    if not isinstance(model, TimmConfig) and not getattr(model, "distillation_token", False):
        raise UserError(
            "distillation.teacher needs a network with a distillation token: set model=deit_t16_distilled or "
            "model.distillation_token=true"
        )
    if distillation.weights is None:  # which may show another size
        check_size(distillation.teacher, trained_sizes(config.train, config.data.image_size))


def _unread(config: Config) -> None:
    """Settings that nothing reads: they would change the name of the run and not the run.

    Not so where the data set's own file sets them, which it does in every run.
    """
    crop, optim = config.data.crop, config.optim
    for reason, unread, section, keys in (
        ("data.crop.kind=padded", crop.kind == "padded", "data.crop", ("scale", "ratio", "interpolation")),
        ("data.crop.kind=resized", crop.kind == "resized", "data.crop", ("padding",)),
        ("augment.randaugment.layers=0", config.augment.randaugment.layers == 0, "augment", ("interpolation",)),
        ("optim.name=sgd", optim.name == "sgd", "optim", ("betas", "eps")),
        (f"optim.name={optim.name}", optim.name != "sgd", "optim", ("momentum",)),
        (
            "distillation.teacher=null",
            config.distillation.teacher is None,
            "distillation",
            ("kind", "alpha", "temperature"),
        ),
        ("distillation.kind=hard", config.distillation.kind == "hard", "distillation", ("temperature",)),
    ):
        settings = attrgetter(section)(config)
        usual = files.usual(files.own_file(config.data)).crop if section == "data.crop" else type(settings)()
        for key in keys if unread else ():
            value, default = (str(getattr(each, key)).replace(" ", "") for each in (settings, usual))
            if value != default:
                raise UserError(f"{section}.{key}={value} does nothing with {reason}: set {section}.{key}={default}")


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
    model = without_weights(config.model)
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

"""What a run says of itself when it starts: sentences for people, and the first row of its record."""

from collections.abc import Iterator
from typing import Any

import torch

import data
from conf.schema import Config
from gab.attention.choice import describe
from gab.models import variant
from gab.models.gaussian import gaussian_values
from gab.models.relative import start_errors
from gab.tracking import provenance
from gab.tracking.observer import Observer
from gab.training import batchnorm
from gab.training.assembly import computed
from gab.training.distillation import Teacher
from gab.training.feeding import shortage
from gab.training.init_from import Start
from gab.training.schedule import effective_lr
from gab.training.trainer import Trainer


def introduce(
    observer: Observer,
    trainer: Trainer,
    config: Config,
    *,
    stored: dict[str, Any] | None,
    start: Start | None,
    teacher: Teacher | None,
) -> None:
    """Say what is trained and on what; the first start of a run writes it into the record too.

    Args:
        stored: the content of the checkpoint that the run goes on from.
        start: of weights that were not drawn.
    """
    origin = provenance.save(trainer.folder) if trainer.processes.first else {}
    further = continued(trainer, stored) if stored else begun(trainer, start)
    for sentence in (*subject(trainer, config, teacher), *further):
        observer.say(sentence)
    if not stored:
        init = start.sentence if start else None
        observer.write("start", **facts(trainer), commit=origin.get("commit"), init=init)


def subject(trainer: Trainer, config: Config, teacher: Teacher | None) -> Iterator[str]:
    """The network, its images, and how it is trained."""
    processes, model = trainer.processes, trainer.state.model
    yield (
        f"{trainer.folder}: {variant(config.model)}, {_parameters(trainer):,} parameters, "
        f"{trainer.macs / 1e9:.2f} G MACs per image"
    )
    yield f"training:   {trainer.train_batches.describe()}"
    taught = teacher.macs(trainer.state.image_size) if teacher else 0
    if said := shortage(trainer.train_batches.rate, trainer.macs, trainer.peak if trainer.bf16 else None, taught):
        yield said
    published = "; these are the published test images" if data.validates_on_test(config.data) else ""
    yield f"evaluation: {trainer.evaluation.batches.describe()}{published}"
    yield (
        f"epochs: {config.train.epochs} of {trainer.steps_per_epoch} steps, batch {config.train.batch_size}, "
        f"learning rate {effective_lr(config.optim, config.train.batch_size):g}, {config.train.precision}, "
        f"{processes.count} x {processes.device.type}"
    )
    images = config.run.micro_batch or config.train.batch_size // processes.count
    if said := batchnorm.describe(model, processes, images):
        yield said
    if said := describe(model, config.run.attention, processes.device):
        yield f"attention: {said}"
    if teacher:
        yield teacher.describe()


def continued(trainer: Trainer, stored: dict[str, Any]) -> Iterator[str]:
    """Sentences that say where a run goes on, and what has changed in how it is computed."""
    step = trainer.state.step
    yield f"continues the run at epoch {step / trainer.steps_per_epoch:.4g}, step {step:,}"
    before, now = stored["computed"], computed(trainer.config, trainer.state.model, trainer.processes)
    changes = [f"{key} {before.get(key)} -> {now[key]}" for key in now if now[key] != before.get(key)]
    if changes:
        yield (
            f"these changed since the last start: {', '.join(changes)}; from here on the run equals an uninterrupted "
            "one only up to rounding"
        )


def begun(trainer: Trainer, start: Start | None) -> Iterator[str]:
    """Where the weights come from."""
    if start:
        yield start.sentence
    if errors := start_errors(trainer.state.model):
        yield f"relative bias: starts as the Gaussian to within {max(errors):.2g} (root mean square of a layer)"


def facts(trainer: Trainer) -> dict[str, Any]:
    """The fields of the row `start`."""
    config, processes = trainer.config, trainer.processes
    return {
        "epoch": 0,
        "step": 0,
        "variant": variant(config.model),
        "seed": config.seed,
        "parameters": _parameters(trainer),
        "macs": trainer.macs,
        "classes": len(trainer.train_batches.classes),
        "train_images": trainer.train_batches.num_samples,
        "eval_images": trainer.evaluation.batches.num_samples,
        "processes": processes.count,
        "device": processes.device.type,
        "precision": config.train.precision,
        "threads": torch.get_num_threads(),
        "effective_lr": effective_lr(config.optim, config.train.batch_size),
        "weights": trainer.initial_weights,
        "origins": trainer.origins,
        **gaussian_values(trainer.state.model),
    }


def _parameters(trainer: Trainer) -> int:
    return sum(parameter.numel() for parameter in trainer.state.model.parameters())

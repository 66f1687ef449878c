"""From the config and an initialised network to what a run trains: the state before the first step, and the step."""

from typing import Any

import torch
from torch import nn

from gab.attention.choice import describe, use, wanted
from gab.augment import Augment
from gab.distributed.processes import Processes
from gab.models.stochastic import attach_keys
from gab.training import batchnorm
from gab.training.average import Average
from gab.training.distillation import Teacher
from gab.training.interfaces import Settings
from gab.training.objective import Objective
from gab.training.optimizer import make_optimizer
from gab.training.state import TrainState
from gab.training.step import TrainStep


def begin(config: Settings, model: nn.Module, processes: Processes, image_size: int) -> TrainState:
    """The state before the first step, on the device of this process.

    Args:
        config: the run's config, filled, without `auto`.
        model: initialised, on the CPU, for images of `image_size` pixels.
    """
    if config.train.sync_batchnorm:
        model = batchnorm.synchronised(model, processes)
    model.to(processes.device)
    use(model, wanted(config.run.attention))
    ema = Average(model, config.train.ema_decay) if config.train.ema_decay else None
    skipped = torch.zeros((), dtype=torch.int64, device=processes.device)
    return TrainState(model, make_optimizer(model, config.optim), ema, skipped, image_size)


def make_step(config: Settings, state: TrainState, processes: Processes, teacher: Teacher | None) -> TrainStep:
    """The step that trains `state`, with its augmentation and its loss; the networks get compiled if they shall be."""
    model = state.model
    keys = attach_keys(model, config.seed, processes.device)
    if teacher is not None:
        model.set_distilled_training(True)  # type: ignore[operator]
    if config.run.compile == "true":  # in place and before DDP, so that names stay and both take effect
        model.compile()
        if state.ema:
            state.ema.module.compile()
    kernels = config.run.compile == "true" and processes.device.type == "cuda"
    augment = Augment(
        config.augment,
        seed=config.seed,
        mean=config.data.mean,
        std=config.data.std,
        device=processes.device,
        cut=config.data.image_size if config.data.crop.size else None,
        compile=kernels,
    )
    return TrainStep(
        state,
        model,
        augment,
        Objective(config.train.loss, config.augment.label_smoothing, teacher, compile=kernels),
        keys,
        processes,
        seed=config.seed,
        bf16=config.train.precision == "bf16",
        micro_batch=config.run.micro_batch,
        clip_grad=config.optim.clip_grad,
        skip_non_finite=config.train.skip_non_finite > 0,
    )


def computed(config: Settings, model: nn.Module, processes: Processes) -> dict[str, Any]:
    """How a run is computed, for its checkpoints; results are equal in every bit only where this is."""
    return {
        "processes": processes.count,
        "micro_batch": config.run.micro_batch,
        "threads": torch.get_num_threads(),
        "device": processes.device.type,
        "compile": config.run.compile,
        "deterministic": config.run.deterministic,
        "attention": describe(model, config.run.attention, processes.device),
        "torch": str(torch.__version__),
    }

"""Train steps a second of the configured network on random images, over 1, 2, ... processes."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn.parallel import DistributedDataParallel

from conf.schema import Config
from gab.distributed.processes import Processes
from gab.models import build
from gab.training.sizes import size_at
from gab.training.trainer import Trainer
from gab.transfer import to_device
from scripts.cluster.network import Groups, synchronize


class RandomBatch(NamedTuple):
    """A batch that looks like the data wing's."""

    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor


class NoImages:
    """Stands for the data set of a trainer that is only asked for steps."""

    steps_per_epoch = num_samples = 1

    def __init__(self, classes: int):
        self.classes = self.names = [str(number) for number in range(classes)]

    def __len__(self) -> int:
        return 0

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def rate(self) -> float:
        raise NotImplementedError("random images come at no rate")

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]:
        return iter(())

    def describe(self) -> str:
        return "no images"

    def close(self) -> None:
        return


def make_trainer(config: Config, container: dict[str, Any], device: torch.device, classes: int) -> Trainer:
    """The run's trainer, as if this process were the only one."""
    image_size = size_at(config.train.sizes, 0, config.data.image_size)
    model = build(config.model, image_size=image_size, num_classes=classes, seed=config.seed)
    return Trainer(
        config,
        container,
        model=model,
        train=NoImages(classes),
        evaluation=NoImages(classes),
        processes=Processes(device=device),
        folder=Path(config.run.dir),
        store=None,
        data_fingerprint={},
    )


def step_rates(
    processes: Processes, groups: Groups, trainer: Trainer, batch: RandomBatch, seconds: float
) -> dict[int, float]:
    """Images a second of all processes together, by their number, in about `seconds` altogether once it is warm.

    With one process too, gradients go through DDP where there are several: the same work, so that only waiting differs.
    All come first, and compile at the same time.
    """
    rates = {}
    for k, group in reversed(groups.items()):
        rate = 0.0
        if processes.rank < k:
            if group is not None:
                cuda = processes.device.type == "cuda"
                trainer.step.network = DistributedDataParallel(
                    trainer.state.model, device_ids=[processes.device] if cuda else None, process_group=group
                )
            rate = k * len(batch.labels) / _seconds_per_step(trainer, batch, group, seconds / len(groups))
            trainer.step.network = trainer.state.model  # lets DDP's buckets go
        rates[k] = processes.broadcast(rate)  # where the others wait, too
    return dict(sorted(rates.items()))


def _seconds_per_step(trainer: Trainer, batch: RandomBatch, group: Any, seconds: float) -> float:
    device = batch.images.device
    parts = to_device(trainer.step.draw(batch, epoch=0, step=0), device)  # in training, a thread's work
    step = partial(trainer.step, batch, parts, lr=1e-4)
    for _ in range(2):  # compiles, allocates
        step()
    steps = torch.tensor(min(max(int(seconds / _timed(step, 1, device)), 1), 100), device=device)
    if group is not None:
        torch.distributed.broadcast(steps, src=0, group=group)
    return _timed(step, int(steps), device)


def _timed(step: Callable[[], Any], steps: int, device: torch.device) -> float:
    """Seconds of a step, the mean over `steps`."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(steps):
        step()
    synchronize(device)
    return (time.perf_counter() - start) / steps


def random_batch(size: int, image_size: int, classes: int, device: torch.device) -> RandomBatch:
    """Random uint8 images (size, 3, S, S) in the layout of the loaders, and labels."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (size, image_size, image_size, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(classes, (size,), generator=generator)
    indices = torch.arange(size)
    return RandomBatch(pixels.to(device).permute(0, 3, 1, 2), labels.to(device), indices)

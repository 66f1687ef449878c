"""What the trainer needs of the config, of the data wing and of those who watch, without knowing any of them."""

from collections.abc import Iterator
from typing import Any, Protocol

from gab.config import (
    AugmentConfig,
    CheckpointConfig,
    DistillationConfig,
    InitConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
)


class CropSettings(Protocol):
    """What training reads of the section `data.crop`."""

    @property
    def size(self) -> int | None: ...


class DataSettings(Protocol):
    """What training reads of the section `data`, whose type belongs to the data wing."""

    @property
    def name(self) -> str: ...

    @property
    def split(self) -> str: ...

    @property
    def holdout(self) -> float: ...

    @property
    def fraction(self) -> float: ...

    @property
    def split_seed(self) -> int: ...

    @property
    def metric(self) -> str: ...

    @property
    def image_size(self) -> int: ...

    @property
    def crop(self) -> CropSettings: ...

    @property
    def mean(self) -> list[float]: ...

    @property
    def std(self) -> list[float]: ...

    @property
    def eval_crop(self) -> float: ...

    @property
    def eval_interpolation(self) -> str: ...


class Settings(Protocol):
    """What training reads of a run's config, which is `conf.schema.Config`; sections are read, never replaced."""

    @property
    def model(self) -> ModelConfig: ...

    @property
    def data(self) -> DataSettings: ...

    @property
    def augment(self) -> AugmentConfig: ...

    @property
    def optim(self) -> OptimConfig: ...

    @property
    def init(self) -> InitConfig: ...

    @property
    def distillation(self) -> DistillationConfig: ...

    @property
    def train(self) -> TrainConfig: ...

    @property
    def seed(self) -> int: ...

    @property
    def run(self) -> RunConfig: ...

    @property
    def checkpoint(self) -> CheckpointConfig: ...


class Batches(Protocol):
    """A data set, as one process of the run reads it."""

    classes: list[str]
    num_samples: int  # of the whole split

    def describe(self) -> str: ...

    def close(self) -> None: ...


class TrainBatches(Batches, Protocol):
    """Training batches: named tuples of images, labels, indices and digest, of any epoch, from any step."""

    steps_per_epoch: int

    def rate(self) -> float: ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]: ...


class EvalBatches(Batches, Protocol):
    """Evaluation batches: this process's share of the split, every image once."""

    names: list[str]

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...


class Observer(Protocol):
    """Who is told of every row: the record first, its mirrors after it."""

    def write(self, kind: str, **fields: Any) -> None: ...

    def say(self, sentence: str) -> None: ...

    def state(self) -> dict[str, Any]: ...

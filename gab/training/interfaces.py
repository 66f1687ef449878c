"""What the trainer needs of the data wing and of those who watch, without knowing either."""

from collections.abc import Iterator
from typing import Any, Protocol


class Batches(Protocol):
    """A data set, as one process of the run reads it."""

    classes: list[str]
    num_samples: int  # of the whole split

    def describe(self) -> str: ...

    def close(self) -> None: ...


class TrainBatches(Batches, Protocol):
    """Training batches: named tuples of images, labels, indices and digest, of any epoch, from any step."""

    steps_per_epoch: int

    @property
    def rate(self) -> float | None: ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]: ...


class EvalBatches(Batches, Protocol):
    """Evaluation batches: this process's share of the split, every image once."""

    names: list[str]

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...


class Observer(Protocol):
    """Who is told of every row: the record first, its mirrors after it."""

    def write(self, kind: str, **fields: Any) -> None: ...

    def state(self) -> dict[str, Any]: ...

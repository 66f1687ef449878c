"""One interface for all that looks at a model: a network and images in, numbers and files out."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from gab.distributed.processes import Processes
from gab.errors import Unmeasurable
from gab.evaluators.accuracy import Predictions, predict
from gab.evaluators.csv_file import write_csv
from gab.training.interfaces import EvalBatches

OWN = "top1"  # the evaluator of the data set's own images, whose numbers and files need no name


class Images(Protocol):
    """The images that an evaluator looks at, as this process reads them."""

    def __call__(self, part: str = "") -> EvalBatches:
        """Open them, or one part of a set that has parts; the part before it is closed."""

    def close(self) -> None:
        """End the loaders."""


@dataclass(frozen=True)
class Conditions:
    """How the network is looked at.

    Attributes:
        prepare: uint8 images (b, 3, S, S) on the device to the network's input.
        bf16: autocast to bfloat16.
        folder: of the files; None: none is written.
        figures: of those that are looked at; None: none is drawn.
        suffix: of their names, which tells weights apart.
        between: called after every batch, equally often in all processes; may raise, to end the evaluation.
        watch: batches to the same batches, with a progress bar.
    """

    prepare: Callable[[Tensor], Tensor]
    processes: Processes
    bf16: bool = False
    folder: Path | None = None
    figures: Path | None = None
    suffix: str = ""
    between: Callable[[], None] = lambda: None
    watch: Callable[[EvalBatches, str], Any] = lambda batches, name: batches

    def predict(self, model: nn.Module, batches: EvalBatches, name: str) -> Predictions:
        """Predictions for all images, in all processes; `name` is for the progress bar."""
        shown = self.watch(batches, name + self.suffix)
        return predict(model, shown, self.prepare, self.processes, bf16=self.bf16, between=self.between)

    def visit(self, batches: EvalBatches, name: str, take: Callable[[Any], None]) -> None:
        """Call `take` with every batch of this process; `name` is for the progress bar.

        Raises:
            Unmeasurable: in all processes, when they have come to the end, where any process's `take` raised it.
        """
        counts, refusal = self.processes.gather_objects(len(batches)), None
        for batch in self.watch(batches, name + self.suffix):
            if refusal is None:
                try:
                    take(batch)
                except Unmeasurable as error:
                    refusal = str(error)
            self.between()
        for _ in range(max(counts) - len(batches)):  # another process has a batch more
            self.between()
        for one in self.processes.gather_objects(refusal):
            if one is not None:
                raise Unmeasurable(one)

    def file(self, name: str) -> Path | None:
        """Where this process is to write a file, in a folder that exists; None: it is not."""
        if self.folder is None or not self.processes.first:
            return None
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / name
        return path.with_stem(path.stem + self.suffix)

    def tables(self, **tables: Sequence[dict[str, Any]]) -> list[Path]:
        """Write tables as `name`.csv, where this process is to; returns the files."""
        files = []
        for name, rows in tables.items():
            if path := self.file(f"{name}.csv"):
                write_csv(path, rows)
                files.append(path)
        return files

    def figure(self, name: str) -> Path | None:
        """Where this process is to draw a figure, without the ending; None: it is not."""
        if self.figures is None or not self.processes.first:
            return None
        return self.figures / (name + self.suffix)


@dataclass(frozen=True)
class Result:
    """What an evaluator found: numbers by name, the headline first; of how many images; files that it wrote."""

    numbers: dict[str, float]
    images: int
    files: list[Path] = field(default_factory=list)


class Evaluator(Protocol):
    """Looks at a network. All processes of a run call it, and all get the numbers."""

    def __call__(self, model: nn.Module, images: Images, conditions: Conditions) -> Result: ...


@dataclass(frozen=True)
class Look:
    """An evaluator with its images, and when it is due in training."""

    evaluator: Evaluator
    images: Images
    every_epochs: int | None = None  # None: after the last epoch

    def due(self, epoch: int, epochs: int) -> bool:
        """Whether it is to be done after epoch number `epoch` (from 1) of `epochs`."""
        return epoch == epochs or bool(self.every_epochs and epoch % self.every_epochs == 0)


Results = dict[str, dict[str, Result]]  # by the kind of weights, then by evaluator


def look(
    looks: dict[str, Look],
    networks: dict[str, nn.Module],
    conditions: Conditions,
    leave_out: Callable[[str, str, Unmeasurable], None] | None = None,
) -> Results:
    """Let every evaluator look at every network; files go to a folder by the evaluator's name, but for OWN's.

    Args:
        networks: by the kind of their weights: raw or ema.
        leave_out: is told which evaluator, on which weights, finds nothing that it can measure; None: that is raised.

    Raises:
        UserError: what an evaluator refuses.
    """
    results: Results = {weights: {} for weights in networks}
    for name, one in looks.items():
        folder = conditions.folder if name == OWN or conditions.folder is None else conditions.folder / name
        for weights, model in networks.items():
            here = replace(conditions, folder=folder, suffix="" if weights == "raw" else f"_{weights}")
            try:
                results[weights][name] = one.evaluator(model, one.images, here)
            except Unmeasurable as error:
                if leave_out is None:
                    raise
                leave_out(name, weights, error)
        one.images.close()
    return results


def flat(results: Iterable[tuple[str, Result]]) -> dict[str, float]:
    """`v2_top1`, `v2_images` and so on, of (evaluator, result); the names of OWN stay as they are."""
    found: dict[str, float] = {}
    for name, result in results:
        prefix = "" if name == OWN else f"{name}_"
        found |= {prefix + key: value for key, value in result.numbers.items()} | {f"{prefix}images": result.images}
    return found

"""One interface for all that looks at a model: a network and images in, numbers and files out."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from gab.distributed.processes import Processes
from gab.evaluators.accuracy import Predictions, predict
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
        suffix: of their names, which tells weights apart.
        between: called after every batch, equally often in all processes; may raise, to end the evaluation.
        watch: batches to the same batches, with a progress bar.
    """

    prepare: Callable[[Tensor], Tensor]
    processes: Processes
    bf16: bool = False
    folder: Path | None = None
    suffix: str = ""
    between: Callable[[], None] = lambda: None
    watch: Callable[[EvalBatches, str], Any] = lambda batches, name: batches

    def predict(self, model: nn.Module, batches: EvalBatches, name: str) -> Predictions:
        """Predictions for all images, in all processes; `name` is for the progress bar."""
        shown = self.watch(batches, name + self.suffix)
        return predict(model, shown, self.prepare, self.processes, bf16=self.bf16, between=self.between)

    def file(self, name: str) -> Path | None:
        """Where this process is to write a file, in a folder that exists; None: it is not."""
        if self.folder is None or not self.processes.first:
            return None
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / name
        return path.with_stem(path.stem + self.suffix)


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


def look(looks: dict[str, Look], networks: dict[str, nn.Module], conditions: Conditions) -> Results:
    """Let every evaluator look at every network; files go to a folder by the evaluator's name, but for OWN's.

    Args:
        networks: by the kind of their weights: raw or ema.
    """
    results: Results = {weights: {} for weights in networks}
    for name, one in looks.items():
        folder = conditions.folder if name == OWN or conditions.folder is None else conditions.folder / name
        for weights, model in networks.items():
            here = replace(conditions, folder=folder, suffix="" if weights == "raw" else f"_{weights}")
            results[weights][name] = one.evaluator(model, one.images, here)
        one.images.close()
    return results


def flat(results: Iterable[tuple[str, Result]]) -> dict[str, float]:
    """`v2_top1`, `v2_images` and so on, of (evaluator, result); the names of OWN stay as they are."""
    found: dict[str, float] = {}
    for name, result in results:
        prefix = "" if name == OWN else f"{name}_"
        found |= {prefix + key: value for key, value in result.numbers.items()} | {f"{prefix}images": result.images}
    return found

"""Top-1, top-5 and log-loss with exact counts: every image once, on any number of processes."""

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gab.distributed.processes import Processes


class Batches(Protocol):
    """Batches of this process, and their number."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...


class Predictions(NamedTuple):
    """Per image, in the order of the split."""

    image: np.ndarray  # (n,) int64, sample index
    label: np.ndarray  # (n,) int64
    top5: np.ndarray  # (n, 5) int64, best first; fewer columns where there are fewer classes
    log_loss: np.ndarray  # (n,) float32, natural logarithm

    def save(self, path: Path, names: list[str]) -> None:
        """Write the columns to `path` (.npz); `image` (n,) holds the names of the files."""
        np.savez_compressed(path, **(self._asdict() | {"image": np.array(names)[self.image]}))


@dataclass(frozen=True)
class Scores:
    """Shares are percentages of `images`; `mean_per_class` is the mean of top-1 over the classes that have images."""

    top1: float
    top5: float
    mean_per_class: float
    log_loss: float
    images: int


@torch.no_grad()
def predict(
    model: nn.Module,
    batches: Batches,
    prepare: Callable[[Tensor], Tensor],
    processes: Processes,
    *,
    bf16: bool = False,
    between: Callable[[], None] = lambda: None,
) -> Predictions:
    """Predict every image of this process's share and gather all shares.

    Args:
        batches: named tuples of images uint8 (b, 3, S, S), labels (b,) and indices (b,); the last may be shorter.
        prepare: uint8 images on the device to the network's input.
        bf16: autocast to bfloat16; final numbers are float32.
        between: called after every batch, equally often in all processes; may raise, to end the evaluation.
    """
    was_training = model.training
    model.eval()
    parts: list[tuple[Tensor, ...]] = []
    full, counts = 0, processes.gather_objects(len(batches))
    for batch in batches:
        full = max(full, len(batch.images))
        with torch.autocast(processes.device.type, torch.bfloat16, enabled=bf16):
            parts.append(_predict_batch(model, batch, prepare, processes.device, full))
        between()
    for _ in range(max(counts) - len(batches)):  # another process has a batch more
        between()
    model.train(was_training)
    return _gather(parts, processes)


def _predict_batch(
    model: nn.Module, batch: Any, prepare: Callable[[Tensor], Tensor], device: torch.device, full: int
) -> tuple[Tensor, ...]:
    """The columns of `Predictions` for one batch, shown to the network as one of `full` images."""
    images, labels = (t.to(device, non_blocking=True) for t in (batch.images, batch.labels))
    count = len(images)
    if count < full:  # one shape and memory format for the whole evaluation: nothing is compiled twice
        rows = images.permute(0, 2, 3, 1)  # as they lie in memory
        images = torch.cat([rows, rows[-1:].expand(full - count, -1, -1, -1)]).permute(0, 3, 1, 2)
    logits = model(prepare(images))[:count].float()
    top5 = logits.topk(min(5, logits.shape[1]), dim=1).indices
    return batch.indices, labels, top5, F.cross_entropy(logits, labels, reduction="none")


def _gather(parts: list[tuple[Tensor, ...]], processes: Processes) -> Predictions:
    """Shares of all processes in the order of the split; a process may have had no image at all."""
    mine = [torch.cat(columns).cpu().numpy() for columns in zip(*parts, strict=True)] if parts else None
    shares = [share for share in processes.gather_objects(mine) if share is not None]
    columns = [np.concatenate(column) for column in zip(*shares, strict=True)]
    order = np.argsort(columns[0], kind="stable")
    return Predictions(*(column[order] for column in columns))


def score(predictions: Predictions) -> Scores:
    """Counts over all images, as percentages."""
    hit = predictions.top5 == predictions.label[:, None]
    images, hits = np.bincount(predictions.label), np.bincount(predictions.label, weights=hit[:, 0])
    return Scores(
        top1=100 * float(hit[:, 0].mean()),
        top5=100 * float(hit.any(1).mean()),
        mean_per_class=100 * float((hits[images > 0] / images[images > 0]).mean()),
        log_loss=float(predictions.log_loss.mean(dtype=np.float64)),
        images=len(hit),
    )


def write_per_class(predictions: Predictions, classes: list[str], path: Path) -> None:
    """One CSV row per class: images, top-1, top-5 (percent) and mean log-loss."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "name", "images", "top1", "top5", "log_loss"])
        for number, name in enumerate(classes):
            rows = predictions.label == number
            if rows.any():
                s = score(Predictions(*(column[rows] for column in predictions)))
                writer.writerow([number, name, s.images, f"{s.top1:.3f}", f"{s.top5:.3f}", f"{s.log_loss:.5f}"])

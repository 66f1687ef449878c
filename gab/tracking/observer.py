"""Everyone who is told what a run does: the record first, then the dashboard and the screen, which mirror it."""

from pathlib import Path
from typing import Any, Self

from gab.errors import STOPPED, Stopped
from gab.tracking.config import TrackingConfig
from gab.tracking.mirror import Mirror
from gab.tracking.progress import Progress
from gab.tracking.record import Record


class Observer:
    """Takes the rows of a run. Silent on all processes but the first.

    Args:
        folder: the run's folder.
        tracking: of the dashboard.
        config: the whole config as plain containers.
        variant, seed: by which dashboards group.
        epochs, steps_per_epoch: of the run.
        metric: what the data set is judged by.
        step, best: optimiser steps done before this start, and the best score of its evaluations (percent).
        position: bytes of the record that a resumed run keeps; what follows is written again.
        wandb_id: of the run's dashboard, as its checkpoint knows it.
        active: whether this is the first process.
    """

    def __init__(
        self,
        folder: Path,
        tracking: TrackingConfig,
        config: dict[str, Any],
        *,
        variant: str,
        seed: int,
        epochs: int,
        steps_per_epoch: int,
        metric: str = "top1",
        step: int,
        best: float,
        position: int,
        wandb_id: str | None,
        active: bool,
    ):
        self.folder = folder
        self.record = Record(folder / "record.jsonl", active=active)
        self.record.truncate(position)
        self.metric = metric
        self.progress = Progress(epochs, steps_per_epoch, step=step, metric=metric, best=best, active=active)
        self.mirror = Mirror(
            folder,
            tracking,
            config,
            variant=variant,
            seed=seed,
            name=folder.name,
            wandb_id=wandb_id,
            warn=self.progress.message,
            active=active,
        )

    def write(self, kind: str, **fields: Any) -> None:
        """Add a row to the record and show it."""
        row = self.record.write(kind, **fields)
        self.mirror.update()
        if kind == "train":
            self.progress.update(
                row["step"],
                loss=row["loss"],
                images_per_second=row["images_per_second"],
                data_wait=row["data_wait"],
            )
        elif kind == "eval":
            others = {name: row.get(name) for name in ("top1", "top5", f"{self.metric}_ema") if name != self.metric}
            self.progress.evaluated(row[self.metric], **others)
        elif kind == "evaluate" and row["figures"]:
            drawn = sorted({str(Path(file).parent) for file in row["figures"].values()})
            self.progress.message(
                f"{len(row['figures'])} figures in {', '.join(str(self.folder / one) for one in drawn)}"
            )

    def say(self, sentence: str) -> None:
        """A line on the screen."""
        self.progress.message(sentence)

    def state(self) -> dict[str, Any]:
        """What belongs into a checkpoint: bytes of the record, which are on the disk now, and the dashboard's id."""
        return {"record": self.record.sync(), "wandb_id": self.mirror.id}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Close; the dashboard is told how the run ended."""
        self.close(0 if error is None else STOPPED if isinstance(error, Stopped) else 1)

    def close(self, exit_code: int = 0) -> None:
        """End the record and the dashboard; says where the dashboard is."""
        self.progress.close()
        self.record.close()
        sentence = self.mirror.finish(exit_code)
        if sentence:
            self.progress.message(sentence)

"""The checkpoints of a run: written beside the loop, kept in order, and the one that a start goes on from.

`last.pt` is the newest, `step_00000123.pt` are older ones, `best.pt` is that of the best evaluation. A file gets its
name only when all of it is on the disk, so one that has a name was whole once.
"""

import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from gab.errors import UserError
from gab.training import checkpoint


def most_files(keep: int) -> int:
    """How many files the disk must take: `last.pt`, `best.pt`, `keep` older ones, and the one that is being written."""
    return 3 + keep


def has_checkpoint(run: Path) -> bool:
    """Whether the folder of a run holds a checkpoint to go on from."""
    return bool(_newest_first(run / "checkpoints"))


class CheckpointStore:
    """The folder `checkpoints/` of a run; for its first process.

    Args:
        folder: made when the first file is written.
        keep: number of older checkpoints beside `last.pt`.
        check: called before a file gets its name; raises where this process may not write here any more.
    """

    def __init__(self, folder: Path, *, keep: int, check: Callable[[], None]):
        self.folder, self.keep, self.check = folder, keep, check
        self.last = folder / "last.pt"
        self._last_step: int | None = None  # of a `last.pt` that is known to be good
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def newest(self, say: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint that is whole, and its content on the CPU; None where the run has none yet.

        Args:
            say: is told, in a sentence, of every newer one that is damaged.

        Raises:
            UserError: there are some, but none can be used.
        """
        for unfinished in self.folder.glob(".*.part"):  # of a process that was killed while it wrote
            unfinished.unlink(missing_ok=True)
        files = _newest_first(self.folder)
        for number, path in enumerate(files, start=1):
            try:
                content = checkpoint.load(path)
            except UserError as error:
                if number == len(files):
                    raise
                say(f"{error}. Going on from the one before it, {files[number].name}.")
                continue
            self._last_step = content["step"] if path == self.last else None
            return path, content
        return None

    def save(self, content: dict[str, Any], *, last: bool = True, best: bool = False) -> None:
        """Write `content` as `last.pt`, `best.pt` or both. Returns when it is copied; the file is written meanwhile.

        Raises:
            UserError: the checkpoint before this one could not be written.
        """
        self.wait()
        self._writing = self._writer.submit(self._write, _copied(content), last, best)

    @property
    def idle(self) -> bool:
        """Whether no file is being written."""
        return self._writing is None or self._writing.done()

    def poll(self) -> None:
        """Raise what has gone wrong with the writing, without waiting for it."""
        if self.idle:
            self.wait()

    def wait(self) -> None:
        """Wait for the file that is being written.

        Raises:
            UserError: it could not be written; the checkpoint before it is still there.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Let a file that is being written be finished."""
        self._writer.shutdown()

    def _write(self, content: dict[str, Any], last: bool, best: bool) -> None:
        aside = self.folder / ".last.pt.part"
        try:
            with checkpoint.writing(self.last):
                self.folder.mkdir(parents=True, exist_ok=True)
                checkpoint.write(aside, content)
                self.check()
                if best:
                    self._publish_best(aside)
                if last:
                    self._publish_last(aside, content["step"])
                _sync(self.folder)
        finally:
            aside.unlink(missing_ok=True)

    def _publish_best(self, aside: Path) -> None:
        """One file under two names costs nothing; where the file system has no links, it is copied."""
        link = self.folder / ".best.pt.part"
        link.unlink(missing_ok=True)
        try:
            os.link(aside, link)
        except OSError:
            shutil.copyfile(aside, link)
            _sync(link)
        link.replace(self.folder / "best.pt")

    def _publish_last(self, aside: Path, step: int) -> None:
        """The file that was the last becomes the first of the older ones, unless it is damaged."""
        if self._last_step is not None and self.keep:
            self.last.replace(self.folder / f"step_{self._last_step:08d}.pt")
        aside.replace(self.last)
        self._last_step = step
        for path in _older(self.folder)[: -self.keep or None]:
            path.unlink(missing_ok=True)


def _newest_first(folder: Path) -> list[Path]:
    """What a start may go on from; a file of another name, such as a copy, is nobody's."""
    return [path for path in (folder / "last.pt", *reversed(_older(folder)), folder / "best.pt") if path.is_file()]


def _older(folder: Path) -> list[Path]:
    return sorted(folder.glob("step_*.pt"), key=lambda path: (len(path.name), path.name))


def _copied(value: Any) -> Any:
    """`value` with its tensors copied to the CPU, so that training may go on and change the originals."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, (list, tuple)) else value


def _sync(path: Path) -> None:
    """Wait until the file, or the names in the folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

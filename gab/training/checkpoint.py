"""Checkpoint files: plain tensors and numbers, with checksums, never unpickled."""

import os
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from gab.errors import UserError

FORMAT = 2  # 2: in mid-epoch


def expected_bytes(parameters: int, *, ema: bool) -> int:
    """Size of a checkpoint: weights, two moments and perhaps an average, in float32."""
    return 4 * parameters * (3 + ema)


def write(path: Path, content: dict[str, Any]) -> None:
    """Write `content` (tensors, numbers, strings, lists and dicts of these) to the disk.

    torch's zip files carry a CRC-32 of every part, which `load` compares.
    """
    try:
        torch.save({"format": FORMAT, **content}, path)  # by path: torch then writes without holding Python's lock
    except RuntimeError as error:  # which does not tell what the disk said, such as that it is full: ask once more
        with open(path, "ab") as file:
            file.write(bytes(1 << 16))
        raise OSError(_first_line(error)) from error
    with open(path, "rb") as file:
        os.fsync(file.fileno())


GO_ON = "repeat the same command, which goes on from the last checkpoint, or set run.dir to another place"


@contextmanager
def writing(path: Path, then: str = GO_ON) -> Iterator[None]:
    """Turn what a disk refuses into a sentence about the file `path`; `then` is what to do when there is room.

    Raises:
        UserError: the disk does not take it; what was there before is still there.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or _first_line(error)
        raise UserError(f"cannot write {path} ({reason}): make room and {then}") from error


def load(path: Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a checkpoint of this project.

    Raises:
        UserError: it is missing, cut short, holds code, or is not one of ours.
    """
    if not path.is_file():
        inside = path / "checkpoints" / "last.pt"
        raise UserError(f"there is no checkpoint {path}" + (f": take {inside}" if inside.is_file() else ""))
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load verifies nothing: one flipped bit would pass
            damaged = archive.testzip()
        if damaged:
            raise ValueError(f"its part {damaged} is damaged")
        content = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:  # torch's text advises to load it all the same
        raise UserError(f"{path} is not a checkpoint of this project: it would run code when loaded") from error
    except (zipfile.BadZipFile, RuntimeError, EOFError, OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a checkpoint that can be read safely ({_first_line(error)}), another one is needed"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(
            f"{path} was not written by this version's train.py: for other weights use model=timm or convert it"
        )
    return content


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__

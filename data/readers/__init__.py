"""Readers of data sets, one module each; `data.reader` names the module, so that a new file is a new reader."""

import difflib
import importlib
import pkgutil
from pathlib import Path

from data.config import DataConfig
from data.errors import DataError
from data.readers.base import Source

SPLITS = ("train", "val")


def readers() -> list[str]:
    """Names that `data.reader` may have."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")


def open_source(data: DataConfig, split: str) -> Source:
    """The original images of `split` (train | val).

    Raises DataError if they are missing, may not be read, or are not as they should be.
    """
    if split not in SPLITS:
        raise DataError(f"There is no split {split!r}; set eval.split to {' or '.join(SPLITS)}.")
    if data.reader not in readers():
        close = difflib.get_close_matches(data.reader, readers(), n=3, cutoff=0.5) or readers()
        raise DataError(f"There is no reader {data.reader!r}; set data.reader to {' or '.join(close)}.")
    module = importlib.import_module(f"data.readers.{data.reader}")
    try:
        return module.open_split(Path(data.root).expanduser(), split)
    except OSError as error:
        where, reason = error.filename or data.root, error.strerror or error
        raise DataError(f"{where} cannot be read ({reason}); allow it, or set data.root to a copy.") from error

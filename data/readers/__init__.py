"""Readers of data sets, one module each; `data.reader` names the module, so that a new file is a new reader.

A module has `open_split(root, split)`, and, where the usual does not hold,
- `published(root)`: the splits that it can open, in the order train, val, test (usual: train and val);
- `open_pool(root)`: all its images, for splits of one's own (usual: those of all published splits);
- `download(root)`: fetches and unpacks what is not there yet, as far as that is possible; with it, `ARCHIVES`: where
  in the root it puts each file, and the address that it fetches that from.
"""

import difflib
import importlib
import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from data.config import DataConfig
from data.errors import DataError
from data.readers.base import Source, Together


def readers() -> list[str]:
    """Names that `data.reader` may have."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")


def published(data: DataConfig) -> tuple[str, ...]:
    """The splits that the data set was published with. Raises DataError, like all that follow."""
    with _opened(data) as (reader, root):
        return reader.published(root) if hasattr(reader, "published") else ("train", "val")


def open_published(data: DataConfig, split: str) -> Source:
    """The original images of a published split.

    Raises DataError if they are missing, may not be read, or are not as they should be.
    """
    with _opened(data) as (reader, root):
        return reader.open_split(root, split)


def open_pool(data: DataConfig) -> Source:
    """All original images with a published label, whatever their split."""
    with _opened(data) as (reader, root):
        if hasattr(reader, "open_pool"):
            return reader.open_pool(root)
        splits = published(data)
        return Together([reader.open_split(root, split) for split in splits], splits)


def download(data: DataConfig) -> None:
    """Fetch and unpack what is not there yet; raises DataError where that is not possible, or fails."""
    with _opened(data) as (reader, root):
        if not hasattr(reader, "download"):
            raise DataError(
                f"No command can fetch data={data.name}: put its files into {root} as the first lines of "
                f"conf/data/{data.name}.yaml say, and leave --download out."
            )
        root.mkdir(parents=True, exist_ok=True)
        try:
            reader.download(root)
        except (OSError, RuntimeError) as error:  # RuntimeError: torchvision's, of a wrong checksum
            raise DataError(
                f"The download into {root} failed ({error}): fetch {_addresses(reader.ARCHIVES, root)}, by other "
                "means, and run the same command again, with --download, which unpacks what is there."
            ) from error


def _addresses(archives: dict[str, str], root: Path) -> str:
    """Part of a sentence: each address, and the file that it is to become."""
    return " and ".join(f"{url} as {root / path}" for path, url in archives.items())


@contextmanager
def _opened(data: DataConfig) -> Iterator[tuple[ModuleType, Path]]:
    """The reader of `data` and its folder; within, errors of the file system become a DataError.

    Every data set begins without its folder, so the sentence then says what the reader wants to find in it, too.
    """
    if data.reader not in readers():
        close = difflib.get_close_matches(data.reader, readers(), n=3, cutoff=0.5) or readers()
        raise DataError(f"There is no reader {data.reader!r}; set data.reader to {' or '.join(close)}.")
    root = Path(data.root).expanduser()
    try:
        yield importlib.import_module(f"data.readers.{data.reader}"), root
    except DataError as error:
        if root.is_dir():
            raise
        raise DataError(
            f"The data folder {root} does not exist; set data.root=FOLDER, or GAB_DATA to the folder that holds it, or "
            f"make it: {error}"
        ) from error
    except OSError as error:
        where, reason = error.filename or data.root, error.strerror or error
        raise DataError(
            f"{where} cannot be read ({reason}); check its permissions, or set data.root to a copy."
        ) from error

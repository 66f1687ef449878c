"""Where the images lie in an archive: found once and kept, since that takes minutes and every process wants to know."""

import io
import os
import zipfile
import zlib
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np

from data import disk

Place = tuple[str, int, int]  # name of an image, its offset in the archive and its size, bytes


def kept_places(path: Path, archives: list[Path], find: Callable[[], list[Place]]) -> list[Place]:
    """What `find` finds in `archives`, from the file `path` if they have not changed (in size or time) since.

    Of several processes one searches and the others wait. Where nothing may be written, each searches for itself.
    """
    stats = [archive.stat() for archive in archives]
    key = np.array([(stat.st_size, stat.st_mtime_ns) for stat in stats], np.int64)
    with ExitStack() as stack:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(disk.locked(path, needed=False))
        places = _load(path, key)
        if places is None:
            places = find()
            with suppress(OSError):
                disk.save(path, _packed(key, places))
    return places


def _packed(key: np.ndarray, places: list[Place]) -> bytes:
    """An .npz file without pickles."""
    names = os.fsencode("\n".join(name for name, _, _ in places))
    numbers = np.array([place[1:] for place in places], np.int64).reshape(-1, 2)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, key=key, names=np.frombuffer(names, np.uint8), numbers=numbers)
    return buffer.getvalue()


def _load(path: Path, key: np.ndarray) -> list[Place] | None:
    """What was kept; None if that is nothing, damaged, or of other archives."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            if not np.array_equal(kept["key"], key):
                return None
            names = os.fsdecode(kept["names"].tobytes()).split("\n")
            return [(name, start, size) for name, (start, size) in zip(names, kept["numbers"].tolist(), strict=True)]
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error):
        return None

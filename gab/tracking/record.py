"""The record of a run: `record.jsonl`, one JSON object per line, and the truth of which every dashboard is a mirror.

Rows carry `kind` (start, train, eval of the validation images, evaluate of other sets, test, end) and whatever was
measured. Units, here and in every reader of a record: `epoch` in epochs (fractional in train rows), `top1`, `top5` and
`mean_per_class` in percent, `data_wait` and `mfu` as shares (0 to 1), `sigma` in patches and `amplitude` without unit,
both as one entry per layer: a number, or a list of one per head.

The file is strict JSON: null means "not measured", and what JSON cannot hold is written as the strings "NaN",
"Infinity" and "-Infinity", which `read` turns back into floats. 64-bit digests belong into hexadecimal strings, since
many JSON readers round large integers.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gab.errors import UserError

Row = dict[str, Any]

NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
# Rare rows, worth waiting for the disk; train rows reach the operating system only.
SYNCED = ("start", "eval", "evaluate", "test", "end")


class Record:
    """Appends rows to a record; each one is handed to the operating system at once, so that a killed run keeps it.

    Args:
        path: the file, made if missing. An unfinished last line, left by a crash, is cut off.
        active: False on every rank but 0: nothing is read or written, and `position` stays 0.

    Raises:
        UserError: the file cannot be opened or written.
    """

    def __init__(self, path: Path, *, active: bool = True) -> None:
        self.path = Path(path)
        self.position = 0  # bytes, after the last whole row; belongs into the checkpoint
        self._file = None
        if active:
            with self._failure_is_a_sentence():
                self._file = self.path.open("a+b", buffering=0)
                self._cut(_end_of_last_row(self.path))

    def write(self, kind: str, **fields: Any) -> Row:
        """Appends one row and returns it in plain Python (numpy scalars and arrays become numbers and lists)."""
        row = {"kind": kind, **{name: _plain(value) for name, value in fields.items()}}
        if self._file is None:
            return row
        line = json.dumps(_strict(row), allow_nan=False).encode() + b"\n"
        with self._failure_is_a_sentence():
            if self._file.write(line) != len(line):
                raise OSError("the disk took only a part of the line")  # which goes at the next start
            if kind in SYNCED:
                os.fsync(self._file.fileno())
        self.position += len(line)
        return row

    def sync(self) -> int:
        """Waits until every row is on the disk and returns `position`: call it before the checkpoint that holds it."""
        if self._file is not None:
            with self._failure_is_a_sentence():
                os.fsync(self._file.fileno())
        return self.position

    def truncate(self, position: int) -> None:
        """Drops every row after `position`, as a resumed run does: it will write them again.

        Raises:
            UserError: the file holds no row that ends there, so it is not the record of that checkpoint.
        """
        if self._file is None:
            return
        self._file.seek(max(position - 1, 0))
        if position > self.position or (position > 0 and self._file.read(1) != b"\n"):
            raise UserError(
                f"{self.path} was changed since the checkpoint was written (no row ends at byte {position}): "
                "put the file back as it was, or start anew under another run.name."
            )
        with self._failure_is_a_sentence():
            self._cut(position)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _cut(self, position: int) -> None:
        assert self._file is not None
        self._file.truncate(position)
        os.fsync(self._file.fileno())
        self.position = position

    @contextmanager
    def _failure_is_a_sentence(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"Cannot write {self.path} ({error.strerror or error}): make room or fix its permissions, and repeat "
                "the same command, which goes on from the last checkpoint."
            ) from error


def read(path: Path) -> list[Row]:
    """All rows of a record, in order; a broken last line, as a crash leaves one, is left out.

    Raises:
        UserError: there is no such file, or another line is broken.
    """
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"Cannot read the record {path} ({error.strerror}): give the folder of a run.") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(parse(line))
        except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are ones
            if number == len(lines):
                break
            raise UserError(f"{path}, line {number}, is not a row of a record ({error}): remove that line.") from error
    return rows


def parse(line: bytes) -> Row:
    """The row that a line of a record holds.

    Raises:
        ValueError: it holds none.
    """
    row = json.loads(line)
    if not isinstance(row, dict) or "kind" not in row:
        raise ValueError("not an object with a kind")
    return {name: _loose(value) for name, value in row.items()}


def _end_of_last_row(path: Path) -> int:
    """Bytes up to and including the last line break; reads backwards, as records of long runs are large."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(end - 65536, 0)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
    return 0


def _plain(value: Any) -> Any:
    """Python numbers, lists and dicts from numpy's and torch's."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _strict(value: Any) -> Any:
    """`value` with non-finite floats as strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    return [_strict(item) for item in value] if isinstance(value, list) else value


def _loose(value: Any) -> Any:
    """The inverse of `_strict`."""
    if isinstance(value, str):
        return NON_FINITE.get(value, value)
    if isinstance(value, dict):
        return {key: _loose(item) for key, item in value.items()}
    return [_loose(item) for item in value] if isinstance(value, list) else value

"""A W&B that knows no account, and a reader of its offline files."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

BLOCK = 32768  # bytes of a LevelDB log block


def records(path: Path) -> Iterator:
    """The protobuf records of a .wandb file: a LevelDB log behind a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, position, parts = path.read_bytes(), 7, b""
    while position + 7 <= len(content):
        room = BLOCK - position % BLOCK
        length, kind = struct.unpack_from("<HB", content, position + 4)
        if room < 7 or kind == 0:  # padding up to the next block
            position += room
            continue
        chunk = content[position + 7 : position + 7 + length]
        position += 7 + length
        parts = chunk if kind in (1, 2) else parts + chunk  # whole, or first
        if kind in (1, 4):  # whole, or last
            yield Record.FromString(parts)


def _items(items) -> dict:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


@pytest.fixture
def wandb_files():
    """Returns a function: run folder -> what W&B keeps there, all starts of the run together."""

    def read(folder: Path) -> SimpleNamespace:
        found = SimpleNamespace(rows=[], config={}, summary={}, runs=[], metrics=[], exit_codes=[])
        for path in sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_ctime_ns):
            for record in records(path):
                match record.WhichOneof("record_type"):
                    case "history":
                        found.rows.append(_items(record.history.item))
                    case "run":
                        found.runs.append(record.run)
                        found.config.update(_items(record.run.config.update))
                    case "summary":
                        found.summary.update(_items(record.summary.update))
                    case "metric":
                        found.metrics.append(record.metric)
                    case "exit":
                        found.exit_codes.append(record.exit.exit_code)
        return found

    return read


@pytest.fixture
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """None of the developer's W&B settings, and no wandb-core that outlives the test."""
    import os

    import wandb

    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    monkeypatch.chdir(home)
    wandb.teardown()
    yield
    wandb.teardown()

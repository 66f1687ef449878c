"""A W&B that knows no account, a reader of its offline files, a server for it, and runs that it mirrors."""

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from gab.tracking.config import TrackingConfig
from gab.tracking.metrics import metrics
from gab.tracking.mirror import Mirror
from gab.tracking.record import Record, Row, read
from tests.gab.tracking.peer import KEY, Peer

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


@pytest.fixture
def peer(no_account: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Peer]:
    """A W&B server to which the client has a key; it is told of rows within a second."""
    server = Peer()
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL", "1")
    yield server
    server.stop()


class MirroredRun:
    """A run as W&B sees it: a record and its mirror.

    Args:
        folder: of the run; made.
        mode: of W&B.
        position: bytes of the record that a resumed run keeps; None: all.
        wandb_id: of its checkpoint.
    """

    def __init__(
        self,
        folder: Path,
        mode: str | None = "offline",
        position: int | None = None,
        wandb_id: str | None = None,
        **settings,
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.warnings: list[str] = []
        self.record = Record(folder / "record.jsonl")
        if position is not None:
            self.record.truncate(position)
        tracking = TrackingConfig(wandb=mode, **settings)
        config = {"model": {"depth": 2}, "tracking": {"project": tracking.project}}
        (folder / "config.yaml").write_text(json.dumps(config))
        names = {"variant": "vit_gab", "seed": 3, "name": "the-run", "wandb_id": wandb_id}
        self.mirror = Mirror(folder, tracking, config, warn=self.warnings.append, **names)

    @property
    def id(self) -> str | None:
        return self.mirror.id

    def log(self, *rows: Row) -> None:
        for row in rows:
            self.record.write(**row)
            self.mirror.update()

    def finish(self, exit_code: int = 0, **limit: float) -> str | None:
        self.record.close()
        return self.mirror.finish(exit_code, **limit)


@pytest.fixture
def mirrored() -> type[MirroredRun]:
    return MirroredRun


@pytest.fixture
def shown() -> Callable[[list[dict]], list[dict]]:
    """Returns a function: rows of W&B -> what was logged, in their order there."""
    return lambda rows: [{key: value for key, value in row.items() if key[0] != "_"} for row in rows]


@pytest.fixture
def expected() -> Callable[[Path], list[dict]]:
    """Returns a function: run folder -> what W&B should show of its record."""
    return lambda folder: [metrics(row) for row in read(folder / "record.jsonl") if row["kind"] != "start"]

"""What the tests of the entry points share: configs made as the command line makes them, and runs that are run once."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

ROOT = Path(__file__).parents[1]

# A ViT that trains in seconds with every source of randomness on, and LayerScale raised so that attention counts.
TINY = [
    *("experiment=digits", "model.embed_dim=48", "model.depth=2", "model.drop_path_rate=0.1"),
    *("augment=gab", "augment.mixing_group=4", "train.batch_size=32", "train.epochs=2", "train.max_steps=10"),
    *("data.loader=torch", "run.workers=1", "run.device=cpu", "run.log_every=1", "tracking.wandb=disabled"),
]


# Files of minutes, the longest first.
LONGEST = [
    "slurm/test_sweep.py",
    "test_resume.py",
    "slurm/test_run.py",
    "test_contributing.py",
    "faults/test_growth.py",
]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, then those with slow tests, so that no process is left with a long one at the end."""
    heavy = {item.path for item in items if item.get_closest_marker("slow") or item.get_closest_marker("slurm")}
    places = {ROOT / "tests" / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (places.get(item.path, len(LONGEST)), item.path not in heavy))


@pytest.fixture(scope="session", autouse=True)
def quiet_environment() -> Iterator[None]:
    """Neither the developer's data folder, nor ranks of a job that the tests run in."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name in ("GAB_DATA", "RANK", "WORLD_SIZE", "LOCAL_RANK") or name.startswith(("SLURM_", "WANDB_")):
                patch.delenv(name)
        yield


@pytest.fixture(scope="session")
def config() -> Callable[..., DictConfig]:
    """`config(*overrides, name="train")`: the config of a command line."""

    def make(*overrides: str, name: str = "train") -> DictConfig:
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            return compose(name, overrides=list(overrides))

    return make


@pytest.fixture(scope="session")
def tiny_run(config: Callable[..., DictConfig]) -> Callable[..., Path]:
    """`tiny_run(folder, *overrides)`: train `TINY`; returns the folder of the run, which is `folder`/run."""
    import train

    def run(folder: Path, *overrides: str) -> Path:
        train.run(config(*TINY, f"run.dir={folder}", "run.name=run", *overrides))
        return folder / "run"

    return run


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., SimpleNamespace]:
    """`command("train.py", *arguments)`: what a user does, in an empty directory; gives code, out and err."""

    def run(script: str, *arguments: str, **environment: str) -> SimpleNamespace:
        done = subprocess.run(
            [sys.executable, str(ROOT / script), *arguments],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            text=True,
            timeout=600,
        )
        return SimpleNamespace(code=done.returncode, out=done.stdout, err=done.stderr)

    return run


@pytest.fixture(scope="session")
def rows() -> Callable[..., list[dict]]:
    """`rows(folder, kind)`: what the record of a run holds, of one kind or all."""

    def read(folder: Path, kind: str | None = None) -> list[dict]:
        lines = (folder / "record.jsonl").read_text().splitlines()
        return [row for row in map(json.loads, lines) if kind in (None, row["kind"])]

    return read


@pytest.fixture
def figures_are_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in this process take half the time without."""
    monkeypatch.setattr("gab.tracking.figures.draw", lambda *_: [])


@pytest.fixture
def no_ffcv(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without FFCV, whatever of it this process has imported before."""
    needing = ("ffcv.", "data.ffcv_loader", "data.turbojpeg")  # the parts of an import that are there are not made anew
    for name in [name for name in sys.modules if name.startswith(needing)]:
        package, _, attribute = name.rpartition(".")
        if package == "data":  # where `from data import ...` would find it
            monkeypatch.delattr(sys.modules[package], attribute, raising=False)
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ffcv", None)  # imports of it fail

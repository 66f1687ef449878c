"""Look an allocation over in two minutes: `srun python scripts/check_cluster.py`, or with torchrun, or alone.

Prints one table to paste: versions, all-reduce bandwidth, the loader's and the train step's images a second, scaling
over 1, 2, ... processes, how fast files are staged and checkpoints written, and what looks wrong, with a remedy. With
`data=NAME` the loader reads that data set, else photos that are made for it. Other settings are as of train.py.
"""

import argparse
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that the script also runs where the project is not installed

from hydra import compose, initialize_config_dir

import data
from conf.checks import check, fill_in
from conf.errors import refuse_unknown, sentences
from conf.schema import Config, plain, typed
from data import files
from data.config import DataConfig
from data.writer import write_split
from gab.distributed.launch import launch
from gab.distributed.processes import Processes, choose_device, count_processes, loader_options
from gab.models import variant
from scripts.cluster import disks, loading, network, node, training
from scripts.cluster.findings import Findings
from scripts.cluster.table import report

BATCH = {"cpu": 8, "cuda": 128}  # images of a process in a step
CLASSES = 1000
BLOCK = 256 << 20  # bytes that are written and staged


@dataclass(frozen=True)
class Effort:
    """How long to measure, and how much."""

    seconds: float  # altogether, without compiling
    sizes: dict[str, int]  # of all-reduces, bytes
    block: int  # bytes
    made_up: bool  # no data set was named: photos are made


def main(arguments: list[str] | None = None) -> None:
    """The command line; what a user can get wrong ends in one sentence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "overrides", nargs="*", help="settings, as of train.py: model=NAME data=NAME run.dir=FOLDER ..."
    )
    parser.add_argument("--seconds", type=float, default=120.0, help="that it shall take, without compiling")
    parser.add_argument(
        "--batch-size", type=int, help="images of a process in a step; default: 128 on a GPU, 8 on a CPU"
    )
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes, and rough numbers")
    given = parser.parse_intermixed_args(arguments)
    with sentences():
        with initialize_config_dir(str(ROOT / "conf"), version_base=None):
            cfg = compose("train", given.overrides)
        refuse_unknown(plain(cfg))
        device = choose_device(cfg.run.device)
        count = count_processes(cfg.run.processes, device)
        cfg.train.batch_size = count * (given.batch_size or BATCH[device])
        fill_in(cfg, device)
        config: Config = typed(cfg)
        check(config, count)
        sizes = network.SIZES if not given.quick else dict(list(network.SIZES.items())[:1])
        named = any(override.startswith(("data=", "data.root=", "experiment=")) for override in given.overrides)
        effort = Effort(2.0 if given.quick else given.seconds, sizes, BLOCK >> 6 * given.quick, not named)
        launch(look_over, (config, plain(cfg), effort), count=count, device=device)


def look_over(processes: Processes, config: Config, container: dict[str, Any], effort: Effort) -> None:
    """What each process does; the first one prints."""
    workers = loader_options(processes, config.run.workers)["workers"]
    seen = processes.gather_objects(node.look(processes.device, workers))
    stage = Path(config.data.stage or tempfile.gettempdir()).expanduser()
    with images(processes, config.data, effort) as (dataset, source, classes):
        say(processes, "disks and clocks")
        disk = disks.try_disks(processes, Path(config.run.dir), stage, source, effort.block)
        clocks = network.clocks(processes)
        say(processes, "all-reduce")
        groups = network.make_groups(processes)
        bandwidth = network.bandwidth(processes, groups, effort.sizes, 0.2 * effort.seconds)
        say(processes, "train steps")
        trainer = training.make_trainer(config, container, processes.device, classes)
        share = config.train.batch_size // processes.count
        batch = training.random_batch(share, trainer.state.image_size, classes, processes.device)
        steps = training.step_rates(processes, groups, trainer, batch, 0.4 * effort.seconds)
        say(processes, "loader")
        loader = loading.loader_rate(processes, dataset, config.run.workers, 0.2 * effort.seconds)
    loaders = processes.gather_objects(loader)
    places = {one.host: found for one, found in zip(seen, processes.gather_objects(disk), strict=True) if found}
    if processes.first:
        found = Findings(
            seen=seen,
            device=processes.device.type,
            clocks=clocks,
            bandwidth=bandwidth,
            steps=steps,
            loaders=[rate for rate, _ in loaders],
            disks=places,
            notes=notes(loaders[0][1], effort),
        )
        print(report(title(config, found), found))


@contextmanager
def images(processes: Processes, wanted: DataConfig, effort: Effort) -> Iterator[tuple[DataConfig, Path | None, int]]:
    """The data set that the loader shall read, the file of it that would be staged if there is one, and its classes."""
    if not effort.made_up:
        if processes.first:
            data.prepare(wanted)
        processes.barrier()
        path = files.train_beton(wanted) if wanted.loader == "ffcv" else None
        yield replace(wanted, stage=None), path, len(data.inspect(wanted).classes)
        return
    with tempfile.TemporaryDirectory(prefix="check_cluster_", ignore_cleanup_errors=True) as own:
        host = socket.gethostname()
        folder = next(place for at, place in processes.gather_objects((host, own)) if at == host)
        loader = wanted.loader if node.ffcv_version() != node.MISSING else "torch"
        photos = DataConfig(name="folder", root=folder, image_size=wanted.image_size, loader=loader, write=wanted.write)
        if processes.local_rank == 0:
            loading.make_photos(Path(folder), processes.local_count)
            if loader == "ffcv":
                write_split(photos, "train")
        processes.barrier()
        yield photos, None, CLASSES
        processes.barrier()  # the others read in the folder of the first of their node


def title(config: Config, found: Findings) -> str:
    """What was measured, and when."""
    count, nodes = len(found.seen), len(found.nodes)
    return (
        f"check_cluster, {date.today()}: {count} process{'es' * (count > 1)} on {found.device}, {nodes} "
        f"node{'s' * (nodes > 1)}; {variant(config.model)} at {config.data.image_size} px, {config.train.precision}, "
        f"run.compile={config.run.compile}, {config.train.batch_size // count} images of each process in a step"
    )


def notes(loader: str, effort: Effort) -> list[str]:
    """Sentences about things that are not faults."""
    told = [f"the loader is {loader}"]
    if effort.made_up:
        told.append("it read photos that were made up for it; data=NAME measures a data set")
    if not node.reaches(url := node.wandb_url()):
        told.append(
            f"W&B ({url}) cannot be reached from here: keep tracking.wandb=offline, and send the run later from a "
            "machine that reaches it (scripts/wandb_resync.py)"
        )
    return told


def say(processes: Processes, what: str) -> None:
    """Says what is being measured, to whoever waits."""
    if processes.first:
        print(f"measuring {what} ...", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

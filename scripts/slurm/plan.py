"""A run of train.py before it is submitted: its config, checked, its folder, and the words that start it in a job."""

import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

import data
from conf.checks import check, check_images, fill_in
from conf.errors import explain, refuse_unknown
from conf.schema import Config, plain, typed
from data.info import DataInfo
from gab.errors import UserError
from gab.models import variant
from gab.tracking.record import Row, read
from gab.training import snapshot
from gab.training.checkpoint_store import has_checkpoint
from gab.training.run_folder import check_folder, run_name

ROOT = Path(__file__).resolve().parents[2]
# On the node, where these variables have their values: the job's own disk, unless the config names another.
STAGE = "${oc.env:GAB_STAGE,${oc.env:SLURM_TMPDIR,null}}"


@dataclass(frozen=True)
class Plan:
    """A run as it will be started: the overrides of its command line, its config and its folder (absolute)."""

    overrides: tuple[str, ...]
    config: Config
    folder: Path

    def rows(self) -> list[Row]:
        """The record as far as it is written."""
        record = self.folder / "record.jsonl"
        return read(record) if record.is_file() else []

    def line(self, what: str) -> str:
        """What a job reads: folder, `train` or `eval`, and the words of the command, quoted for a shell."""
        return shlex.join([str(self.folder), what, *(self.train_words if what == "train" else self.eval_words)])

    @cached_property
    def train_words(self) -> list[str]:
        pinned = [f"run.dir={quoted(str(self.folder.parent))}", f"run.name={quoted(self.folder.name)}"]
        stage = [] if self.config.data.stage else [f"data.stage={quoted(STAGE)}"]
        return [*self.overrides, *pinned, *stage]

    @cached_property
    def eval_words(self) -> list[str]:
        run = self.config.run
        places = [
            f"checkpoint={quoted(f'{self.folder}/checkpoints/last.pt')}",
            f"eval.out={quoted(f'{self.folder}/eval')}",
        ]
        return [*places, f"run.device={run.device}", f"run.eval_batch={run.eval_batch}"]


def plan(overrides: list[str], *, gpus: int, processes: int) -> Plan:
    """What `python train.py OVERRIDES` will do in a job of `processes` processes, with `gpus` GPUs on each node.

    The name of a run depends on its precision, which `auto` leaves to the device: a GPU is taken to know bfloat16.

    Raises:
        UserError: it could not run, or its folder holds a run with another config.
        DataError: its data cannot be used.
    """
    cfg = composed(overrides)
    try:
        refuse_unknown(plain(cfg))
        cuda = gpus > 0 and cfg.run.device != "cpu"
        if cuda and cfg.train.precision == "auto":
            cfg.train.precision = "bf16"
        fill_in(cfg, "cuda" if cuda else "cpu")
        config: Config = typed(cfg)
        container = plain(cfg)
    except OmegaConfBaseException as error:
        raise UserError(explain(error)) from error
    check(config, processes)
    check_data(config)
    folder = Path(config.run.dir).absolute() / (config.run.name or run_name(container, variant(config.model)))
    check_folder(folder, container)
    return Plan(tuple(overrides), config, folder)


def composed(overrides: list[str]) -> DictConfig:
    """The config of `python train.py OVERRIDES`, as Hydra composes it; raises UserError if it cannot."""
    try:
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            return compose("train", overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error)) from error


def check_data(config: Config) -> None:
    """Look at the data set, where it can be seen from here: a login node may not have it.

    Raises:
        DataError: it is there and cannot be used.
        UserError: it does not fit the settings.
    """
    if not config.data.write_if_missing and not Path(config.data.root).is_dir():
        return  # every node looks again before it trains
    key = repr(config.data)
    if key not in _seen:
        _seen[key] = data.inspect(config.data)
    check_images(config, _seen[key])


_seen: dict[str, DataInfo] = {}  # by the data section: the cells of a sweep mostly share it


def prepare(plans: list[Plan]) -> None:
    """Give every run its folder and its copy of the code; says which go on with the code that they have."""
    for each in plans:
        said = snapshot.take(ROOT, each.folder)
        if len(plans) == 1 or has_checkpoint(each.folder):
            print(said)
        (each.folder / "slurm").mkdir(exist_ok=True)


def quoted(value: str) -> str:
    """`value` for the right side of an override."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"

"""The presets of conf/experiment: writes the cost line of every file and the tables of docs/presets.md from the files.

`python scripts/presets.py` after a change of any preset. A preset begins with comments of this form, whose statements
may go on in lines that begin with `#   `:

    # @package _global_
    # python train.py -m experiment=gab/pets_s16 seed=0,1,2
    # expect: 91.486 test top-1 (GAB, Table 3)            what was published, and where, or: not published (why)
    # cost: 0.04 GPU-hours a run = ...                    of one GPU; this script writes the line
    # open: what the paper leaves open, and our choice
    # note: a caution; may be missing
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import groupby, takewhile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that the script also runs where the project is not installed

import timm
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import nn

from conf.checks import fill_in
from conf.schema import Config, typed
from gab.models import build, variant
from gab.training.flops import RATE, RATE_MACS, macs

EXPERIMENTS = ROOT / "conf" / "experiment"
TABLES = ROOT / "docs" / "presets.md"
MARK = "<!-- From here on by scripts/presets.py. -->\n"
TITLES = {"gab": "GAB", "lape": "LaPE", "life": "LIFE", "vitae": "ViTAE", "baselines": "Baselines"}

# Costs come from the measured RATE of one network. Assumed: other networks' rates fall with their multiply-accumulates,
# and none is above LIMIT.
LIMIT = 10_000.0

# Classes, images of the official training set, and of the training part of data.split=pooled.
DATA = {
    "imagenet": (1000, 1_281_167, None),
    "imagenet100": (100, 130_000, None),
    "tiny_imagenet": (200, 100_000, None),
    "cifar10": (10, 50_000, None),
    "cifar100": (100, 50_000, None),
    "pets": (37, 3_680, 5_173),
    "caltech101": (102, 3_060, 6_400),
    "cars": (196, 8_144, 11_329),
    "dogs": (120, 12_000, 14_405),
}


@dataclass(frozen=True)
class Preset:
    """What the file of a preset says of itself.

    Attributes:
        name: as in `experiment=NAME`.
        command: what follows `python train.py`.
        expect: (result, source) of each published number.
        cost, open, note: the statements after these words.
    """

    name: str
    command: str
    expect: list[tuple[str, str]]
    cost: str
    open: list[str]
    note: list[str]

    @property
    def overrides(self) -> list[str]:
        """The command's settings, of its first run."""
        return [setting.split(",")[0] for setting in self.command.removeprefix("-m ").split()]


def names() -> list[str]:
    """Every preset, as in `experiment=NAME`."""
    return sorted(path.relative_to(EXPERIMENTS).with_suffix("").as_posix() for path in EXPERIMENTS.glob("*/*.yaml"))


def read(name: str) -> Preset:
    """The comments of a preset; raises ValueError where they are not of the form above."""
    text = (EXPERIMENTS / f"{name}.yaml").read_text()
    lines = list(takewhile(lambda line: line.startswith("#"), text.splitlines()))
    if lines[:1] != ["# @package _global_"]:
        raise ValueError(f"{name}: the first line must be `# @package _global_`")
    command = re.fullmatch(rf"# python train\.py ((?:-m )?experiment={name}(?: [\w.]+=\S+)*)", "".join(lines[1:2]))
    if command is None or ("-m " in command[1]) != ("," in command[1]):
        raise ValueError(f"{name}: the second line must be its command, with -m for several runs")
    said: dict[str, list[str]] = {"expect": [], "cost": [], "open": [], "note": []}
    for line in "\n".join(lines[2:]).replace("\n#   ", " ").splitlines():
        key, _, statement = line.removeprefix("# ").partition(": ")
        if key not in said or any(said[later] for later in list(said)[list(said).index(key) + 1 :]):
            raise ValueError(f"{name}: {line!r} is not one of expect, cost, open and note, in this order")
        said[key].append(statement)
    if not said["expect"] or len(said["cost"]) != 1 or not said["open"]:
        raise ValueError(f"{name}: say what to expect, one cost, and what is open")
    results = [re.fullmatch(r"(\d\S* .+|not published) \((.+)\)", result) for result in said["expect"]]
    if not all(results):
        raise ValueError(f"{name}: write `expect: NUMBER WHAT (SOURCE)` or `expect: not published (WHY)`")
    expect = [(result[1], result[2]) for result in results if result]
    return Preset(name, command[1], expect, said["cost"][0], said["open"], said["note"])


@cache
def composed(name: str) -> DictConfig:
    """The preset, as its command makes it."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", read(name).overrides)


@cache
def config(name: str) -> Config:
    """The config of the preset on GPUs."""
    cfg = composed(name).copy()
    fill_in(cfg, "cuda")
    return typed(cfg)


_NETWORKS: dict[str, nn.Module] = {}  # and their work: presets share networks
_WORK: dict[str, int] = {}


def network(name: str) -> nn.Module:
    """The preset's network, without memory for its weights."""
    chosen = config(name)
    size, (classes, _, _) = chosen.data.image_size, DATA[chosen.data.name]
    key = f"{chosen.model} {size} {classes}"
    if key not in _NETWORKS:
        with torch.device("meta"):
            _NETWORKS[key] = build(chosen.model, image_size=size, num_classes=classes, seed=0)
    return _NETWORKS[key]


def train_images(name: str) -> int:
    """Images of an epoch."""
    data = config(name).data
    _, official, pooled = DATA[data.name]
    count = pooled if data.split == "pooled" else official
    assert count is not None
    return round(count * (1 - data.holdout) * data.fraction)


def work(name: str) -> int:
    """Multiply-accumulates of an image's forward pass; a teacher's count a third, since it has no backward pass."""
    chosen = config(name)
    size, teacher = chosen.data.image_size, chosen.distillation.teacher
    key = f"{chosen.model} {size} {DATA[chosen.data.name][0]} {teacher}"
    if key not in _WORK:
        _WORK[key] = macs(network(name), size)
        if teacher:
            with torch.device("meta"):
                _WORK[key] += macs(timm.create_model(teacher), size) // 3
    return _WORK[key]


def cost(name: str) -> str:
    """The preset's cost line, as arithmetic."""
    images, epochs = train_images(name), config(name).train.epochs
    rate = round(min(LIMIT, RATE * RATE_MACS / work(name)), -1)
    hours = epochs * images / rate / 3600
    digits = 1 if hours >= 1 else 2
    return f"{hours:.{digits}f} GPU-hours a run = {epochs} epochs x {images:,} images / {rate:,.0f} images/s"


def table(presets: list[Preset]) -> Iterator[str]:
    """The rows of a table in Markdown."""
    yield "| `python train.py` | data | variant | epochs | batch | published | source | GPU-hours |"
    yield "|---|---|---|---|---|---|---|---|"
    for preset in presets:
        chosen = config(preset.name)
        share = f", {chosen.data.fraction:.0%}" if chosen.data.fraction < 1 else ""
        cells = (
            f"[`{preset.command}`](../conf/experiment/{preset.name}.yaml)",
            chosen.data.name + share,
            variant(chosen.model),
            str(chosen.train.epochs),
            str(chosen.train.batch_size),
            "; ".join(result for result, _ in preset.expect),
            "; ".join(dict.fromkeys(source for _, source in preset.expect)),
            preset.cost.split()[0],
        )
        yield f"| {' | '.join(cells)} |"


def tables() -> str:
    """What docs/presets.md says below its mark."""
    presets = {title: [] for title in TITLES}  # type: dict[str, list[Preset]]
    for folder, members in groupby(names(), key=lambda name: name.split("/")[0]):
        presets[folder] = [read(name) for name in members]
    return "\n\n".join(f"## {TITLES[folder]}\n\n" + "\n".join(table(rows)) for folder, rows in presets.items()) + "\n"


def main() -> None:
    """Write the cost lines and docs/presets.md."""
    for name in names():
        path = EXPERIMENTS / f"{name}.yaml"
        before = path.read_text()
        after = before.replace(f"\n# cost: {read(name).cost}\n", f"\n# cost: {cost(name)}\n")
        if after != before:
            path.write_text(after)
    TABLES.write_text(TABLES.read_text().partition(MARK)[0] + MARK + "\n" + tables())


if __name__ == "__main__":
    main()

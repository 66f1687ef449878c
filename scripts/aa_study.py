"""How far runs lie apart that differ in rounding alone: `python scripts/aa_study.py OUT --seeds 8 experiment=NAME`

Every seed is trained twice, with the settings given and with half the micro-batch: the same images and the same start,
but gradients summed in another order. What follows is what chance does between two seeds, and within one. With
`--also model.gab=true` a third arm has these settings too, so that the same runs make a comparison. All arms of a seed
are trained before the next seed begins; the same command goes on, and repeats nothing that is finished. Networks with
BatchNorm or element-wise dropout are refused: these depend on the micro-batch. In OUT:

    code/            the code as it was at the first start, which trains every run
    runs/a-s0        ... the settings given; runs/aa-s0 with half the micro-batch; runs/b-s0 with those of --also
    study.csv        spread and correlation, which `scripts/compare.py --plan --aa OUT/study.csv` plans by
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from timm.layers import PatchDropout
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that the script also runs where the project is not installed

from conf.errors import sentences
from conf.networks import without_weights
from conf.schema import Config
from gab.comparison import plan, statistics
from gab.comparison.arms import pair_of
from gab.comparison.plan import Spread
from gab.comparison.runs import Endpoint, load
from gab.distributed.processes import choose_device, count_processes
from gab.errors import UserError
from gab.models import build
from gab.training import snapshot
from scripts.slurm.plan import Plan, composed, quoted
from scripts.slurm.plan import plan as checked

FIELDS = ("top1", "loss", "top1_ema", "loss_ema", "test_top1")  # endpoints; the first is what plans are about
OURS = ("seed", "run.dir", "run.name", "run.micro_batch")


def main(arguments: list[str] | None = None) -> None:
    """Train what is not trained yet, then write and print the study's table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the study")
    parser.add_argument("overrides", nargs="*", help="settings, as of train.py")
    parser.add_argument("--seeds", type=int, default=8, help="0, 1, ... (default: %(default)s)")
    parser.add_argument("--also", action="append", default=[], metavar="KEY=VALUE", help="a setting of a third arm")
    parser.add_argument("--parallel", type=int, default=1, help="runs at the same time (default: %(default)s)")
    given = parser.parse_intermixed_args(arguments)
    if given.seeds < 2 or given.parallel < 1:
        parser.error("--seeds takes at least 2, as one has no spread, and --parallel at least 1")
    with sentences():
        study(given)


def study(given: argparse.Namespace) -> None:
    """The whole study; raises UserError for settings that cannot be studied, and where a run fails."""
    plans = list(cells(given.out, given.overrides, given.also, given.seeds))
    check_network(plans[0].config)
    if not (given.out / snapshot.FOLDER).is_dir():
        print(snapshot.take(ROOT, given.out), flush=True)
    with ThreadPoolExecutor(given.parallel) as pool:
        list(pool.map(lambda each: train(given.out, each), plans))
    spreads = measured(given.out, given.seeds)
    plan.write(given.out / "study.csv", spreads)
    print(report(given.out, spreads))


def cells(out: Path, overrides: list[str], also: list[str], seeds: int) -> Iterator[Plan]:
    """Every run, checked, seed by seed."""
    for word in [*overrides, *also]:
        if word.lstrip("+").partition("=")[0] in OURS:
            raise UserError(f"the study sets {word} itself: leave it out")
    first = composed(overrides)
    processes = count_processes(first.run.processes, choose_device(first.run.device))
    share = first.train.batch_size // processes
    if share % 2:
        raise UserError(f"a batch of {share} in a process has no half: set train.batch_size to an even number")
    arms = {"a": [], "aa": [f"run.micro_batch={share // 2}"]} | ({"b": also} if also else {})
    gpus = processes if choose_device(first.run.device) == "cuda" else 0
    for seed in range(seeds):
        for arm, settings in arms.items():
            place = [f"seed={seed}", f"run.dir={quoted(str(out.absolute() / 'runs'))}", f"run.name={arm}-s{seed}"]
            yield checked([*overrides, *settings, *place], gpus=gpus, processes=processes)


def check_network(config: Config) -> None:
    """Refuse a network in which half the micro-batch changes more than rounding.

    Our own dropouts draw by sample or step; PyTorch's and timm's are seeded for each micro-batch, and BatchNorm takes
    its mean and variance.

    Raises:
        UserError: naming the layer.
    """
    with torch.device("meta"):
        network = build(without_weights(config.model), image_size=config.data.image_size, num_classes=2, seed=0)
    for name, layer in network.named_modules():
        dropout = (isinstance(layer, _DropoutNd) and layer.p > 0) or (
            isinstance(layer, PatchDropout) and layer.prob > 0
        )
        if dropout or isinstance(layer, _BatchNorm):
            remedy = "set its rate to 0, or study another network" if dropout else "study a network without BatchNorm"
            raise UserError(
                f"{name} ({type(layer).__name__}) of this network depends on the micro-batch, which the study halves, "
                f"so that its runs would differ in more than rounding: {remedy}"
            )


def measured(out: Path, seeds: int) -> list[Spread]:
    """The spread of every endpoint; raises UserError where two runs of a seed differ in more than rounding."""
    arms = [[load(out / "runs" / f"{arm}-s{seed}") for seed in range(seeds)] for arm in ("a", "aa")]
    pairs = [pair_of(a, b) for a, b in zip(*arms, strict=True)]
    ends = [run.end for runs in arms for run in runs]
    return [plan.spread(pairs, Endpoint(field)) for field in FIELDS if all(field in end for end in ends)]


def report(out: Path, spreads: list[Spread]) -> str:
    """The study in words, and what it means for a plan."""
    top1 = spreads[0]
    lines = [plan.told(spreads), "", plan.meaning(top1), ""]
    if top1.sd:
        find = [f"{statistics.seeds_needed(top1.sd, effect)[0]:,} for {effect:g}" for effect in plan.EFFECTS]
        what = f"a difference in {top1.endpoint} (points), in a single comparison"
        lines.append(f"Seeds in each arm that find {what}: {', '.join(find)}.")
    lines.append(f"More of it: python scripts/compare.py --plan --effect 0.1 --aa {out / 'study.csv'}")
    return "\n".join(lines)


def train(out: Path, each: Plan) -> None:
    """Train a run to its end; raises UserError where train.py could not."""
    name = each.folder.name
    rows = each.rows()
    if rows and rows[-1]["kind"] == "end":
        return
    print(f"{name} ...", flush=True)
    log = out / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    with log.open("a") as file:
        command = [sys.executable, str(out / snapshot.FOLDER / "train.py"), *each.overrides]
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
    if done.returncode:
        raise UserError(f"{name} has not come to its end (code {done.returncode}): {log} says why; repeat the command")
    print(f"{name}: {each.rows()[-1]['top1']:.2f}", flush=True)


if __name__ == "__main__":
    main()

"""A grid of runs as one job array: `python scripts/slurm/sweep.py model=vit_s16,vit_s16_gab seed=0,1,2 -- -p gpu`.

What has values with commas is swept, as by `train.py -m`. The same command again submits only what has not ended and is
not queued; with --status it submits nothing and shows how every run stands. What follows `--` goes to sbatch.
"""

import argparse
import hashlib
import itertools
import shlex
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # so that the script also runs where the project is not installed

from hydra.core.override_parser.overrides_parser import OverridesParser

from conf.errors import sentences
from gab.errors import UserError
from gab.tracking import dashboard
from gab.tracking.session import resolve_mode
from gab.tracking.wandb_run import project
from gab.training import snapshot
from scripts.slurm import jobs
from scripts.slurm.jobs import Resources, standing
from scripts.slurm.plan import Plan, composed, plan, prepare


def main(arguments: list[str] | None = None) -> None:
    """Check every run of the grid, then submit what is left to do, or show how it stands."""
    given, options = parse(arguments)
    with sentences():
        cells = grid(given.overrides)
        cpu_only = composed(cells[0]).run.device == "cpu"
        resources = Resources.of(options, cpu_only=cpu_only, pack=given.pack)
        plans = plan_all(cells, resources, given.pack)
        queue = jobs.queued()
        sweep = Sweep(plans, list(resources.options), given)
        if given.status:
            print(table(plans, queue))
        else:
            sweep.submit(queue)
        if not given.dry_run and sweep.folder.is_dir():
            print(sweep.dashboard(), end="")


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The command line, and the options for sbatch behind `--`."""
    words = sys.argv[1:] if arguments is None else arguments
    cut = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="+", help="settings, as of train.py; KEY=A,B,C is swept")
    parser.add_argument("--limit", type=int, default=8, help="jobs that run at once (default: %(default)s)")
    parser.add_argument(
        "--pack", type=int, default=1, help="runs of one GPU that share a node, in one job (default: 1)"
    )
    parser.add_argument("--evaluate", action="store_true", help="then eval.py for each run, as dependent jobs")
    parser.add_argument("--compare", action="store_true", help="then a comparison of all runs, as a dependent job")
    parser.add_argument("--status", action="store_true", help="show the state of every run; submits nothing")
    parser.add_argument("--dry-run", action="store_true", help="show what would be submitted")
    given = parser.parse_intermixed_args(words[:cut])
    if given.limit < 1 or given.pack < 1:
        parser.error("--limit and --pack take a number of at least 1")
    return given, words[cut + 1 :]


def grid(overrides: list[str]) -> list[list[str]]:
    """The overrides of each run: the product of all that is swept, in the order of the command line.

    Raises:
        HydraException: an override cannot be read.
        UserError: a kind of sweep that is no list of values, such as interval().
    """
    axes = []
    for override in OverridesParser.create().parse_overrides(overrides):
        if not override.is_sweep_override():
            axes.append([str(override.input_line)])
        elif override.is_discrete_sweep():
            axes.append([f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()])
        else:
            raise UserError(f"{override.input_line} is no list of values: write KEY=A,B,C, choice(A,B) or range(0,9)")
    return [list(cell) for cell in itertools.product(*axes)]


def plan_all(cells: list[list[str]], resources: Resources, pack: int) -> list[Plan]:
    """All runs, each checked.

    Raises:
        UserError: the first that could not run, or two that are the same run.
    """
    processes = 1 if pack > 1 else resources.nodes * resources.tasks
    plans: dict[Path, Plan] = {}
    for cell in cells:
        each = plan(cell, gpus=resources.gpus, processes=processes)
        if each.folder in plans:
            raise UserError(
                f"{' '.join(cell)} is the same run as {' '.join(plans[each.folder].overrides)} ({each.folder}): sweep "
                "settings that change results, and do not set run.name"
            )
        plans[each.folder] = each
    return list(plans.values())


class Sweep:
    """The jobs of a grid: an array for the runs, one for their evaluations, and a job that compares them."""

    def __init__(self, plans: list[Plan], options: list[str], given: argparse.Namespace) -> None:
        self.plans, self.given = plans, given
        names = "\n".join(sorted(each.folder.name for each in plans))
        name = f"sweep-{hashlib.blake2b(names.encode(), digest_size=4).hexdigest()}"
        self.folder = plans[0].folder.parent / "sweeps" / name
        self.options = [*options, f"--job-name={name}", f"--output={self.folder}/%A_%a.log"]

    def submit(self, queue: dict[str, str]) -> None:
        """Submit what has not ended and is not queued; with --dry-run, only say it."""
        wanted = [each for each in self.plans if standing(each, "train", queue).wanted]
        if not self.given.dry_run:
            self.folder.mkdir(parents=True, exist_ok=True)
            prepare(wanted)
        trained = self.array("train", wanted)
        if not wanted:
            print("train: nothing to submit, every run has ended or is queued")
        if self.given.evaluate:
            alone = ["--nodes=1"] if self.given.pack > 1 else ["--nodes=1", "--ntasks-per-node=1"]
            after = f"--dependency=aftercorr:{trained}"  # each when its own run has come to its end
            self.array("eval", wanted, [*alone, after, "--kill-on-invalid-dep=yes"])
            ended = [each for each in self.plans if standing(each, "train", queue).state == "done"]
            left = [each for each in ended if standing(each, "eval", queue).wanted]
            if not self.given.dry_run:
                prepare([each for each in left if not (each.folder / snapshot.FOLDER).is_dir()])  # trained by hand
            self.array("eval", left, alone)
        if self.given.compare:
            self.compare()

    def dashboard(self) -> str:
        """A line that says where W&B shows these runs, in a view that is saved once; nothing for runs kept offline."""
        tracking, noted = self.plans[0].config.tracking, self.folder / "dashboard"
        if resolve_mode(tracking) != "online":
            return ""
        try:
            if not noted.is_file():
                where = {"run.name": [each.folder.name for each in self.plans]}
                url = dashboard.save(project(tracking), tracking.entity, name=self.folder.name, where=where)
                noted.write_text(f"{url}\n")
        except UserError as error:
            return f"dashboard: none yet, the same command with --status tries again ({error})\n"
        return f"dashboard: {noted.read_text()}"

    def array(self, what: str, plans: list[Plan], more: list[str] | None = None) -> str:
        """One job array; returns its number, of a dry run a word for it."""
        if not plans:
            return ""
        options = [*self.options, *(more or [])]
        if self.given.dry_run:
            print(f"{what}: {len(plans)} runs, sbatch {shlex.join(options)}")
            print("".join(f"  {label}\n" for label in labels(self.plans, plans)), end="")
            return f"<{what}>"
        job = jobs.submit(plans, what, self.new_file(what), options, limit=self.given.limit, pack=self.given.pack)
        print(f"{what}: job {job}, {len(plans)} runs, at most {self.given.limit} jobs at once")
        return job

    def new_file(self, what: str) -> Path:
        """A name that no earlier submission used, whose jobs may still have to read theirs."""
        return next(f for n in itertools.count(1) if not (f := self.folder / f"{what}-{n}.work").exists())

    def compare(self) -> None:
        """A job for scripts/compare.py when all jobs of these runs have ended, however they did."""
        if self.given.dry_run:
            print("compare: a job that writes", self.folder / "comparison.html")
            return
        queue = jobs.queued()
        known = {jobs.job_of(each, what) or "" for each in self.plans for what in ("train", "eval")}
        before = sorted(job for job in known if job in queue)
        options = [*self.options, f"--output={self.folder}/compare.log"]
        if before:
            options.append(f"--dependency=afterany:{':'.join(before)}")
        print(snapshot.take(ROOT, self.folder))
        script = self.folder / snapshot.FOLDER / "scripts" / "compare.py"
        words = (script, "--out", self.folder, *(plan.folder for plan in self.plans))
        job = jobs.wrap(options, [str(word) for word in words])
        print(f"compare: job {job}, into {self.folder}/comparison.html")


def labels(plans: list[Plan], some: list[Plan]) -> list[str]:
    """What tells each run from the others of the grid."""
    common = set.intersection(*(set(each.overrides) for each in plans)) if len(plans) > 1 else set()
    return [" ".join(word for word in each.overrides if word not in common) for each in some]


def table(plans: list[Plan], queue: dict[str, str]) -> str:
    """How every run stands: a line for each, and a sum."""
    standings = [standing(each, "train", queue) for each in plans]
    names = labels(plans, plans)
    width = max(map(len, names))
    lines = []
    for each, name, now in zip(plans, names, standings, strict=True):
        evaluation = standing(each, "eval", queue)
        evaluated = f"; evaluation {evaluation.state} {evaluation.detail}"
        shown = now.detail if evaluation.state == "not submitted" else now.detail + evaluated
        lines.append(f"{name:{width}}  {now.state:13}  {shown}".rstrip())
    counts = Counter(now.state for now in standings)
    return "\n".join([*lines, ", ".join(f"{number} {state}" for state, number in counts.items())])


if __name__ == "__main__":
    main()

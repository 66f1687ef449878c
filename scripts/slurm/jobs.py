"""Jobs: what is asked of sbatch, what squeue says, and how a run stands, from its folder and the queue."""

import argparse
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from gab.errors import STOPPED, UserError
from scripts.slurm.plan import ROOT, Plan

BATCH = ROOT / "scripts" / "slurm" / "train.sbatch"
OF_SLURM = r"srun: |slurmstepd: error: \*\*\*|/\S+/slurm_script: line"  # lines that only say that something ended
PATIENCE = 60  # seconds for an answer of SLURM
CPUS_PER_GPU = 8  # to decode images


@dataclass(frozen=True)
class Resources:
    """Options of sbatch, with defaults for what was not given: one node, one process for each of its GPUs."""

    options: tuple[str, ...]
    nodes: int
    gpus: int  # of a node
    tasks: int  # of a node

    @classmethod
    def of(cls, given: list[str], *, cpu_only: bool, pack: int = 1) -> "Resources":
        """The resources that `given` asks for; `pack` runs share a node, with a GPU each."""
        parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
        parser.add_argument("--nodes", "-N", default="1")
        parser.add_argument("--ntasks-per-node")
        parser.add_argument("--gpus-per-node", default=os.environ.get("SBATCH_GPUS_PER_NODE"))
        parser.add_argument("--gres", default=os.environ.get("SBATCH_GRES"))
        parser.add_argument("--cpus-per-task", "-c")
        parser.add_argument("--cpus-per-gpu", default=os.environ.get("SBATCH_CPUS_PER_GPU"))
        known, _ = parser.parse_known_args(given)
        refuse_totals(given)
        added = []
        counted = known.gpus_per_node or (known.gres if "gpu" in (known.gres or "") else None)
        if counted is None and not cpu_only:
            counted = str(pack)
            added.append(f"--gpus-per-node={counted}")
        gpus = _last_number(counted) if counted else 0
        tasks = _last_number(known.ntasks_per_node) if known.ntasks_per_node else max(gpus, pack)
        if not known.ntasks_per_node:
            added.append(f"--ntasks-per-node={tasks}")
        if gpus and not (known.cpus_per_task or known.cpus_per_gpu):
            added.append(f"--cpus-per-task={CPUS_PER_GPU}")
        return cls((*added, *given), _last_number(known.nodes), gpus, tasks)


def refuse_totals(given: list[str]) -> None:
    """Raises UserError for what SLURM would spread over nodes as it likes, while each process must know its place."""
    better = dict.fromkeys(("--ntasks", "-n"), "--ntasks-per-node")
    better |= dict.fromkeys(("--gpus", "-G", "--gpus-per-task"), "--gpus-per-node")
    for word in given:
        name = word.partition("=")[0]
        if name in better:
            raise UserError(f"{word} leaves open what each node has: take --nodes=NUMBER and {better[name]}=NUMBER")


def _last_number(text: str) -> int:
    """The count of `4`, `a100:4` or `gpu:a100:4`; of `gpu` alone, 1."""
    last = text.split(",")[0].split("(")[0].rpartition(":")[2]
    if last.isdigit() and int(last) > 0:
        return int(last)
    if last.isalpha():
        return 1
    raise UserError(f"{text!r} is not a number of nodes, tasks or GPUs: give one, as in --nodes=2 --gpus-per-node=4")


def submit(
    plans: list[Plan], what: str, work: Path, options: list[str], *, limit: int | None = None, pack: int = 1
) -> str:
    """One job for `what` (train or eval) of all these runs, and returns its number.

    Args:
        work: file that the job reads, written here: a line for each run.
        limit: of members of an array that run at once; None: no array, for a single run.
        pack: runs of a member.

    Raises:
        UserError: SLURM refused; with its words.
    """
    work.write_text("".join(plan.line(what) + "\n" for plan in plans))
    last = (len(plans) - 1) // pack
    array = [] if limit is None else [f"--array=0-{last}%{limit}"]
    words = [f"--python={sys.executable}", f"--work={work}", f"--pack={pack}"]
    job = _number(_slurm("sbatch", "--parsable", *options, *array, str(BATCH), *words))
    for number, plan in enumerate(plans):
        note_job(plan, what, job if limit is None else f"{job}_{number // pack}")
    return job


def note_job(plan: Plan, what: str, job: str) -> None:
    """Leave in the run's folder which job works on it."""
    (plan.folder / "slurm" / f"{what}.job").write_text(job + "\n")


def job_of(plan: Plan, what: str) -> str | None:
    """The job that was submitted for a run last."""
    return _word(plan.folder / "slurm" / f"{what}.job", 0)


def wrap(options: list[str], words: list[str]) -> str:
    """Submit a Python script that needs one process, and return the number of its job."""
    alone = ["--nodes=1", "--ntasks-per-node=1"]
    return _number(_slurm("sbatch", "--parsable", *options, *alone, f"--wrap={shlex.join([sys.executable, *words])}"))


def _number(answer: str) -> str:
    return answer.strip().partition(";")[0]  # where SLURM has several clusters, its name follows


def queued() -> dict[str, str]:
    """State (PENDING, RUNNING, ...) of each job of this user that has not ended; array members one by one."""
    lines = _slurm("squeue", "--noheader", "--array", "--me", "--format=%i %T").splitlines()
    return dict(line.split(maxsplit=1) for line in lines)


def _slurm(*command: str) -> str:
    """What a command of SLURM prints. Variables of a job that we are in ourselves would speak for the new one."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_") or k == "SLURM_CONF"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    except FileNotFoundError as error:
        raise UserError(f"there is no {command[0]} here: run this on a login node of the cluster") from error
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"{command[0]} gave no answer in {PATIENCE} s: is the controller up? See `scontrol ping`"
        ) from error
    if done.returncode:
        words = " ".join(done.stderr.removeprefix("sbatch: error: ").split())
        raise UserError(f"{command[0]} refused: {words} (`{' '.join(command)}`)")
    return done.stdout


@dataclass(frozen=True)
class Standing:
    """How a run (or its evaluation) stands: waiting, running, done, stopped, failed or not submitted; and a detail."""

    state: str
    detail: str = ""

    @property
    def wanted(self) -> bool:
        """Whether it should be submitted."""
        return self.state not in ("done", "waiting", "running")


def standing(plan: Plan, what: str, queue: dict[str, str]) -> Standing:
    """The standing of the run (`what` = train) or its evaluation (eval)."""
    scores = plan.folder / "eval" / "scores.json"
    rows = plan.rows()
    if what == "train" and rows and rows[-1]["kind"] == "end":
        return Standing("done", f"top-1 {rows[-1]['top1']:.2f} %")
    if what == "eval" and scores.is_file():
        return Standing("done")
    job = job_of(plan, what)
    where = f"at epoch {rows[-1]['epoch']:.4g} of {plan.config.train.epochs}" if rows and what == "train" else ""
    if job is None:
        return Standing("not submitted", where)
    if job in queue:
        if queue[job] == "PENDING":
            return Standing("waiting", f"{where} (job {job})".strip())
        return Standing("running", f"{where or 'starts'} (job {job})")
    exit_file = plan.folder / "slurm" / f"{what}.exit"
    code = _word(exit_file, 1) if _word(exit_file, 0) == job else None
    if code == str(STOPPED):
        return Standing("stopped", where)
    words = last_line(plan.folder / "slurm" / f"{what}.log")
    ending = "killed, or its node failed" if code is None else f"code {code}"
    return Standing("failed", f"{where} ({ending}): {words}".strip())


def last_line(log: Path) -> str:
    """The last words of a run's log, rather than SLURM's about it."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return f"no log (see the sweep's folder or {log.parent})"
    told = [line.strip() for line in lines if line.strip() and not re.match(OF_SLURM, line)]
    return told[-1] if told else "its log is empty"


def _word(file: Path, number: int) -> str | None:
    try:
        return file.read_text().split()[number]
    except (OSError, IndexError):
        return None

"""Kill a small run again and again until it ends; does it end with the bits of an undisturbed one?

`python scripts/torture.py` kills 100 times with one process and 100 times with two, at random moments: while they
start, resume, train, write a checkpoint, evaluate or close; by SIGKILL, SIGTERM (scancel) or SIGUSR1 (a job's time is
up); the launching process or another. Whenever a run ends before the kills are spent, it is compared and the next one
begins. Prints a line for each kill and a table, and writes results/torture.csv. The exit code is 1 if anything differs,
is left over or hangs, or if an exit code is not the promised one.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that the script also runs where the project is not installed
os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported: threads would wait for one another

from gab.errors import LOST_PROCESS, STOPPED
from scripts.bench.tables import circumstances, write_table
from scripts.same_bits import differences
from scripts.victim import (
    CLOSING,
    EVALUATING,
    PHASES,
    RESUMING,
    STARTING,
    TRAINING,
    WRITING,
    Victim,
    last_row,
)

# Every source of randomness, an average that goes over several steps, and checkpoints at every opportunity.
RUN = [
    *("experiment=digits", "model.gab=true", "model.embed_dim=48", "model.depth=2", "model.drop_path_rate=0.1"),
    *("augment=gab", "train.batch_size=32", "train.max_steps=12", "train.eval_images=128", "run.log_every=2"),
    *("run.device=cpu", "run.workers=1"),
    *("checkpoint.every_steps=5", "checkpoint.every_minutes=0.02", "checkpoint.every_epochs=2", "checkpoint.keep=2"),
    *("data.loader=torch", "tracking.wandb=disabled"),
]
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1)
WISHES = {STARTING: 1, RESUMING: 1, TRAINING: 3, WRITING: 3, EVALUATING: 1, CLOSING: 1}  # and their weights
LINGER = {RESUMING: 0.3, TRAINING: 1.5, WRITING: 0.01, EVALUATING: 0.1, CLOSING: 0.5}  # seconds in it, at most
FRESH = 0.1  # share of the starts that are made by the command; the others are forks, which need not import anything
LATE = 0.8  # share of the epochs after which a kill may wait for the end
PATIENCE = 300.0  # seconds for a run to come to its next phase, on a machine that has more to do
END = 120.0  # seconds for a signal to end all processes
SRUN = 2.0  # seconds after which srun or torchrun end those that wait for a process that died before it came


@dataclass
class Kill:
    """A signal, and what came of it."""

    number: signal.Signals
    victim: str
    phase: str
    step: int
    fresh: bool
    codes: list[int | None] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        codes = " ".join(map(str, self.codes))
        return (
            f"{self.number.name:8} {self.victim:9} {self.phase:10} step {self.step:4}  "
            f"exit {codes:8} {self.seconds:5.1f} s{', started by the command' if self.fresh else ''}"
        )


class Torture:
    """All runs with one number of processes.

    Args:
        folder: for the runs; what they print goes to log.txt.
        count: processes of each run.
        epochs: of each run.
    """

    def __init__(self, folder: Path, *, count: int, epochs: int, seed: int):
        self.folder, self.count, self.epochs, self.random = folder, count, epochs, random.Random(seed)
        self.kills: list[Kill] = []
        self.faults: list[str] = []
        self.runs = 0

    def __call__(self, kills: int) -> None:
        """One undisturbed run, then others until the kills are spent."""
        folder = self._next()
        began = time.monotonic()
        undisturbed = self._start(folder, fresh=True)
        undisturbed.wait(5 * PATIENCE)
        self._expect(undisturbed.codes() == [0], f"the undisturbed run ended with {undisturbed.codes()}")
        print(f"undisturbed: {time.monotonic() - began:.0f} s", flush=True)
        while len(self.kills) < kills and not self.faults:
            again = self._next()
            self._to_its_end(again, kills)
            if not self.faults:
                self._compare(folder, again)

    def _next(self) -> Path:
        self.runs += 1
        return self.folder / f"run{self.runs - 1}"

    def _start(self, folder: Path, *, fresh: bool) -> Victim:
        overrides = [*RUN, f"train.epochs={self.epochs}", f"run.dir={folder.parent}", f"run.name={folder.name}"]
        return Victim(folder, overrides, count=self.count, fresh=fresh, log=self.folder / "log.txt")

    def _to_its_end(self, folder: Path, kills: int) -> None:
        """Start and kill until the run has come to its end, or something is wrong."""
        while not self.faults:
            victim = self._start(folder, fresh=self.random.random() < FRESH)
            try:
                kill = self._kill(victim) if len(self.kills) < kills else None
                if not victim.wait(END if kill else 5 * PATIENCE):
                    raise TimeoutError(f"processes {victim.left()} are left after {kill or 'their start'}")
            except TimeoutError as error:
                self._expect(False, f"{folder.name}: {error}; log.txt ends with what they were doing")
                victim.tell()
            finally:
                victim.destroy()
            if kill is None:
                self._expect(set(victim.codes()) == {0}, f"{folder.name}, left alone, ended with {victim.codes()}")
                return

    def _kill(self, victim: Victim) -> Kill | None:
        """Wait for a moment, and send a signal; None if the run ended before."""
        if not self._await_moment(victim):
            return None
        number, members = self.random.choice(SIGNALS), victim.members()
        kinds = set(members.values()) - ({"worker"} if number != signal.SIGKILL else set())
        target = self.random.choice([*sorted(kinds), "all"])
        phase, step = victim.phase(), last_row(victim.folder).get("step", 0)
        if victim.ended():
            return None
        pids = [pid for pid in members if target in ("all", members[pid])]
        began = time.monotonic()
        for pid in pids if target == "all" else [self.random.choice(pids)]:
            victim.send(number, pid)
        kill = Kill(number, target, phase, step, fresh=victim.fresh)
        self.kills.append(kill)
        if phase == STARTING and self.count > 1 and not victim.fresh and not victim.wait(SRUN):
            victim.destroy()
        victim.wait(END)
        kill.codes, kill.seconds = victim.codes(), time.monotonic() - began
        print(f"{victim.folder.name} {len(self.kills):4}  {kill}", flush=True)
        finished = last_row(victim.folder).get("kind") == "end"
        self._expect(
            set(kill.codes) <= promised(kill, finished), f"exit codes {kill.codes} are not promised for {kill}"
        )
        return kill

    def _await_moment(self, victim: Victim) -> bool:
        """Wait for a random moment; False if the run ended before."""
        late = last_row(victim.folder).get("epoch", 0) >= LATE * self.epochs
        wishes = [wish for wish in WISHES if wish != CLOSING or late]
        [wish] = self.random.choices(wishes, [WISHES[wish] for wish in wishes])
        if wish == STARTING:
            time.sleep(self.random.uniform(0, 8.0 if victim.fresh else 1.0))
            return True
        if wish in (WRITING, EVALUATING):  # not always the first one
            if not victim.reaches(TRAINING, PATIENCE):
                return False
            time.sleep(self.random.uniform(0, LINGER[TRAINING]))
        if not victim.reaches(wish, PATIENCE):
            return False
        time.sleep(self.random.uniform(0, LINGER[wish]))
        return True

    def _compare(self, undisturbed: Path, killed: Path) -> None:
        found = differences(undisturbed, killed)
        for line in found[:10]:
            self._expect(False, f"{killed.name} differs: {line}")
        parts = [path.name for path in killed.rglob("*.part")]
        self._expect(not parts, f"{killed.name} has left {', '.join(parts)}")
        print(f"{killed.name}: {'DIFFERS' if found else 'equal in every bit'}", flush=True)

    def _expect(self, good: bool, fault: str) -> None:
        if not good:
            self.faults.append(fault)
            print(f"FAULT: {fault}", flush=True)

    def table(self) -> list[dict[str, Any]]:
        """A row for each signal in each phase."""
        rows = []
        for number in SIGNALS:
            for phase in PHASES:
                kills = [kill for kill in self.kills if (kill.number, kill.phase) == (number, phase)]
                if kills:
                    codes = Counter(code for kill in kills for code in kill.codes)
                    exits = " ".join(f"{code}:{times}" for code, times in sorted(codes.items(), key=str))
                    slowest = round(max(kill.seconds for kill in kills), 1)
                    row = {"processes": self.count, "signal": number.name, "phase": phase, "kills": len(kills)}
                    rows.append(row | {"exit_codes": exits, "slowest_end_seconds": slowest})
        verdict = {"runs": self.runs - 1, "epochs": self.epochs, "verdict": "faults" if self.faults else "same bits"}
        return [row | verdict for row in rows]


def promised(kill: Kill, finished: bool) -> set[int | None]:
    """The exit codes that a run may end with."""
    codes: set[int | None] = {-signal.SIGKILL, LOST_PROCESS} if kill.number == signal.SIGKILL else {STOPPED}
    if kill.victim == "worker":
        codes |= {1}
    if kill.phase == STARTING:
        codes |= {-kill.number, -signal.SIGKILL}  # it did not listen yet; srun ended those that waited for it
    return codes | {0} if finished else codes


def main() -> None:
    """Kill, compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="for each number of processes (default: %(default)s)")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="(default: 1 2)")
    parser.add_argument("--epochs", type=int, default=30, help="of a run (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and signals (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="for the runs, kept; by default a temporary one, kept if it failed")
    parser.add_argument("--csv", type=Path, default=ROOT / "results" / "torture.csv", help="(default: %(default)s)")
    given = parser.parse_args()
    quiet_environment()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="torture-"))
    rows, faults = [], []
    for count in given.processes:
        torture = Torture(folder.resolve() / f"processes{count}", count=count, epochs=given.epochs, seed=given.seed)
        torture.folder.mkdir(parents=True)
        preload()
        torture(given.kills)
        rows += torture.table()
        faults += torture.faults
    for row in rows:
        print("  ".join(f"{value!s:>12}" for value in row.values()))
    command = f"python scripts/torture.py --kills {given.kills} --processes {' '.join(map(str, given.processes))}"
    if given.csv and rows:
        here = circumstances(f"{command} --epochs {given.epochs} --seed {given.seed}", ["torch"])
        write_table(given.csv, [row | here for row in rows])
    if faults:
        sys.exit("\n".join([*faults, f"what they left: {folder}"]))
    if not given.folder:
        shutil.rmtree(folder)
    print("every run ended with the bits of the undisturbed one")


def quiet_environment() -> None:
    """Neither ranks of a job that this runs in, nor a dashboard."""
    for name in list(os.environ):
        if name in ("RANK", "WORLD_SIZE", "LOCAL_RANK") or name.startswith(("SLURM_", "WANDB_")):
            del os.environ[name]


def preload() -> None:
    """Import and compile what a run imports and compiles, so that forks need not."""
    for name in ("train", "torch._dynamo", "matplotlib.pyplot", "matplotlib.backends.backend_agg", "sklearn.datasets"):
        import_module(name)
    import_module("data.torch_loader").compile_resize()


if __name__ == "__main__":
    main()

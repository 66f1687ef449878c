"""Time of a train step (forward, loss, backward, AdamW): networks with an idea and without it, timm's beside ours.

`python scripts/bench_step.py` prints a table and writes its rows into results/bench_step.csv, after every round. Every
network and form has a process of its own, which stays; they are measured in turn, round after round. A ratio is taken
within a round against the first network of the group, and the median over rounds is quoted. Forms:

    eager, compiled    one plain loop for all networks, ours and timm's, on images that lie on the device
    trainer            the step of train.py, compiled on a GPU, with its prefetcher; augmentation and EMA are off
    trainer, files     the same on images from files: --source has the settings of train.py that name them

MFU is 6 operations per multiply-accumulate of the forward pass, over the ceiling: the best rate of a large matrix
product (bfloat16 on a GPU, float32 on a CPU) before the first round. On a GPU (an H200 holds a group at a time):

    python scripts/bench_step.py --device cuda --batch-size 256 --steps 30 --groups gab_base --budget-seconds 540

starts and compiles `--together` networks at once, begins no round for which the budget is too short, and says at the
end which of the project's targets are met by what was measured.
"""

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that the script also runs where the project is not installed

import torch
from torch.utils.benchmark import Timer

from gab.attention.choice import check
from gab.errors import UserError
from scripts.bench.processes import Served
from scripts.bench.step_networks import ALL, GROUPS, Key, Network, targets
from scripts.bench.step_worker import add_options, options
from scripts.bench.tables import circumstances, update_table

WORKER = str(ROOT / "scripts" / "bench" / "step_worker.py")
LIMIT = 0.6  # of the budget may have passed when another network is started


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", nargs="+", default=["gab_small"], choices=list(GROUPS))
    parser.add_argument("--forms", nargs="+", choices=ALL, help="these alone")
    parser.add_argument("--rounds", type=int, default=5)
    add_options(parser)
    parser.add_argument("--deterministic", action="store_true", help="add the price of run.deterministic=true")
    parser.add_argument("--together", type=int, default=1, help="networks that are built and compiled at once")
    parser.add_argument("--budget-seconds", type=float, help="that the whole call may take")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "bench_step.csv")
    given = parser.parse_args()
    deadline = time.monotonic() + given.budget_seconds if given.budget_seconds else None
    bench = Bench(given, deadline, ceiling(torch.device(given.device)))
    for group in given.groups:
        bench.run(group)
    if given.device == "cuda":
        bench.check_targets()


def ceiling(device: torch.device) -> float:
    """Operations per second of the best of some large square matrix products: bfloat16 on CUDA, float32 on a CPU."""
    cuda = device.type == "cuda"
    best = 0.0
    for side in (4096, 8192, 16384) if cuda else (1024, 2048):
        a, b = torch.randn(2, side, side, device=device, dtype=torch.bfloat16 if cuda else torch.float32)
        timer = Timer("a @ b", globals={"a": a, "b": b})
        best = max(best, 2 * side**3 / timer.blocked_autorange(min_run_time=0.5).median)
    return best


class Bench:
    """Measurements by group, network and form, one per round, and the table that is made of them."""

    def __init__(self, given: argparse.Namespace, deadline: float | None, ceiling: float):
        self.given, self.deadline, self.ceiling = given, deadline, ceiling
        self.about: dict[Key, dict[str, Any]] = {}
        self.rounds: dict[Key, list[dict[str, float]]] = {}
        print(f"ceiling {ceiling / 1e12:.3g} TFLOP/s", flush=True)

    def run(self, group: str) -> None:
        """Start the networks of a group, measure them round after round, write."""
        keys = [(group, name, form) for name, one in GROUPS[group].items() for form in forms(one, self.given)]
        keys.sort(key=lambda key: "trainer" in key[2])  # what the targets want, first
        started = time.monotonic()
        with ThreadPoolExecutor(self.given.together) as pool:
            found = dict(zip(keys, pool.map(self.start, keys), strict=True))
        running = {key: served for key, served in found.items() if served is not None}
        print(f"{group}: {len(running)} of {len(keys)} are ready after {time.monotonic() - started:.0f} s", flush=True)
        try:
            for number in range(self.given.rounds):
                began = time.monotonic()
                for key, served in running.items():
                    self.take(key, served, number)
                update_table(self.given.output, self.rows(), ("group", "network", "form", "images", "gpu"))
                if number == 0:
                    print(f"{group}: a round takes {time.monotonic() - began:.0f} s", flush=True)
                if self.left() < time.monotonic() - began:
                    print(f"{group}: the budget ends after {number + 1} rounds", flush=True)
                    break
        finally:
            for served in running.values():
                served.close()

    def left(self) -> float:
        """Seconds of the budget."""
        return float("inf") if self.deadline is None else self.deadline - time.monotonic()

    def start(self, key: Key) -> Served | None:
        """The process of a network, ready to measure; None where it failed or would come too late."""
        if self.deadline is not None and self.left() < (1 - LIMIT) * self.given.budget_seconds:
            print(f"  {' | '.join(key)}: no time is left to start it", flush=True)
            return None
        served = Served(WORKER, *key, "--serve", *options(self.given), deadline=self.deadline)
        if served.about is None:
            print(f"  {' | '.join(key)}: it could not be started", flush=True)
            return None
        self.about[key] = served.about
        return served

    def take(self, key: Key, served: Served, number: int) -> None:
        """One measurement."""
        measured = served.ask()
        if measured is None:
            print(f"  {' | '.join(key)}: it has ended or was too slow", flush=True)
            return
        self.rounds.setdefault(key, []).append(measured | {"round": number} | self.derived(key, measured))
        print(f"  round {number + 1} {key[2]:14} {key[1]:36} {1e3 * measured['seconds']:8.1f} ms", flush=True)

    def derived(self, key: Key, measured: dict[str, float]) -> dict[str, float]:
        """Images per second and MFU, from the seconds of a step."""
        rate = self.given.batch_size / measured["seconds"]
        return {"images_per_second": rate, "mfu": 6 * self.about[key]["macs"] * rate / self.ceiling}

    def ratio(self, key: Key, other: Key, quantity: str) -> float | None:
        """The median over rounds of a quantity over that of another; None where there is no round of both."""
        others = {one["round"]: one[quantity] for one in self.rounds.get(other, [])}
        pairs = [(one[quantity], others.get(one["round"])) for one in self.rounds.get(key, [])]
        ratios = [own / against for own, against in pairs if against]
        return median(ratios) if ratios else None

    def rows(self) -> list[dict[str, Any]]:
        """The rows of the table, as far as measured."""
        return [self.row(key) for key in self.rounds]

    def row(self, key: Key) -> dict[str, Any]:
        """One line of the table."""
        group, name, form = key
        of = {quantity: median(one[quantity] for one in self.rounds[key]) for quantity in self.rounds[key][0]}
        first = (group, next(iter(GROUPS[group])), form)
        ratios = {quantity: self.ratio(key, first, quantity) for quantity in ("seconds", "cpu", "memory")}
        files = "files" in form
        synthetic = self.ratio(key, (group, name, "trainer"), "images_per_second") if files else None
        return {
            **{"group": group, "network": name, "form": form},
            "parameters": self.about[key]["parameters"],
            "gmacs": round(self.about[key]["macs"] / 1e9, 3),
            "milliseconds": round(1e3 * of["seconds"], 2),
            "ratio": rounded(ratios["seconds"]),
            "cpu_ratio": rounded(ratios["cpu"]),  # other people's load on the machine hardly changes it
            "images_per_second": round(of["images_per_second"], 1),
            "peak_memory_gib": round(max(one["memory"] for one in self.rounds[key]) / 2**30, 3),
            "memory_ratio": rounded(ratios["memory"]),
            "mfu": rounded(of["mfu"]),
            "ceiling_tflops": round(self.ceiling / 1e12, 4),
            "attention": self.about[key]["attention"],
            "images": " ".join(self.given.source) if files else "",
            "waited": rounded(of["waited"]),
            "of_synthetic": rounded(synthetic),
            "batch_size": self.given.batch_size,
            "rounds": len(self.rounds[key]),
            **circumstances(command(self.given), ["torch", "timm"]),
        }

    def check_targets(self) -> None:
        """Say which targets are met, of those that were measured."""
        for sentence, quantity, of, against, limit, most in targets():
            if against:
                found = self.ratio(of, against, quantity)
            else:
                found = median(one[quantity] for one in self.rounds[of]) if of in self.rounds else None
            if found is None:
                continue
            met = found <= limit if most else found >= limit
            print(f"{'met    ' if met else 'NOT MET'} {sentence}: {found:,.3f} ({'<' if most else '>'}= {limit:,})")


def forms(network: Network, given: argparse.Namespace) -> list[str]:
    """The forms to measure a network in; empty if its attention backend is not available."""
    try:
        check(network.attention, given.device)
    except UserError:
        return []
    chosen = [form for form in network.forms if form in (given.forms or ALL)]
    if given.device == "cpu" and not given.forms:  # compilation is for GPUs
        chosen = list(dict.fromkeys("eager" if form == "compiled" else form for form in chosen))
    if "trainer" in chosen and given.source:
        chosen.append("trainer, files")
    if given.deterministic:
        chosen += [f"{form}, deterministic" for form in chosen]
    return chosen


def command(given: argparse.Namespace) -> str:
    """The command that reproduces these numbers."""
    chosen = f" --forms {' '.join(given.forms)}" if given.forms else ""
    last = f" --budget-seconds={given.budget_seconds:g}" if given.budget_seconds else ""
    last += " --deterministic" if given.deterministic else ""
    return (
        f"python scripts/bench_step.py --groups {' '.join(given.groups)}{chosen} --rounds {given.rounds} "
        f"--together={given.together} {' '.join(options(given))}{last}"
    )


def rounded(value: float | None) -> float | str:
    """The value, rounded to four decimal places; empty for None."""
    return "" if value is None else round(value, 4)


if __name__ == "__main__":
    main()

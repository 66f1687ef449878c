"""How many seeds a comparison needs, from a study of runs that differ in rounding alone (`scripts/aa_study.py`)."""

import csv
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np

from gab.comparison import statistics
from gab.comparison.arms import Pair
from gab.comparison.runs import Endpoint
from gab.comparison.verdict import LEVEL
from gab.errors import UserError

CORRELATIONS = (0.5, 0.9, 0.99)  # that two networks might have; what they have is known only when both are trained
CHAOTIC = 0.7  # correlation up to which rounding is taken to part two runs of one seed
EFFECTS = (0.1, 0.2, 0.5, 1.0)  # points: what papers of this field claim, and more


@dataclass(frozen=True)
class Spread:
    """What chance does to an endpoint.

    Attributes:
        seeds: of which the numbers are.
        sd: over seeds, of one arm.
        rounding: standard deviation of what rounding alone does to a run.
        correlation, low, high: of two runs of one seed, with its 95 % interval.
    """

    endpoint: str
    seeds: int
    mean: float
    sd: float
    rounding: float
    correlation: float
    low: float
    high: float


COLUMNS = [field.name for field in fields(Spread)]


def spread(pairs: Sequence[Pair], endpoint: Endpoint) -> Spread:
    """The spread of pairs that differ in rounding alone.

    Raises:
        UserError: a pair did not see the same images or did not begin alike, so that more than rounding differs.
    """
    for pair in pairs:
        if pair.same_images is False or pair.moved:
            what = "saw other images" if pair.same_images is False else "began with other weights"
            raise UserError(
                f"{pair.b.folder} {what} than {pair.a.folder}, so the two differ in more than rounding: delete both "
                "and train them again with one version of the code"
            )
    a, b = (np.array([endpoint.of(run) for run in runs]) for runs in zip(*((p.a, p.b) for p in pairs), strict=True))
    sd = math.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)
    rounding = float((b - a).std(ddof=1)) / math.sqrt(2)
    return Spread(endpoint.name, len(a), float(a.mean()), sd, rounding, *statistics.correlation(a, b))


def write(path: Path, spreads: Sequence[Spread]) -> None:
    """Writes the spreads as CSV."""
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        for one in spreads:
            table.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in asdict(one).items()})


def read(path: Path, endpoint: str) -> Spread:
    """The line of an endpoint; raises UserError where there is none."""
    try:
        with path.open(newline="") as file:
            rows = {row["endpoint"]: row for row in csv.DictReader(file)}
        row = rows[endpoint]
        return Spread(row["endpoint"], int(row["seeds"]), *(float(row[name]) for name in COLUMNS[2:]))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): scripts/aa_study.py writes it") from error
    except (KeyError, ValueError) as error:
        raise UserError(f"{path} has no line for {endpoint} of scripts/aa_study.py: give its study.csv") from error


def told(spreads: Sequence[Spread]) -> str:
    """A study in words."""
    lines = []
    for one in spreads:
        interval = f", 95 % interval {one.low:.2f} to {one.high:.2f}" if one.low > -1 else ""
        r = "not known" if math.isnan(one.correlation) else f"{one.correlation:.3f}"
        lines.append(
            f"{one.endpoint}: mean {one.mean:.4g}, sd over {one.seeds} seeds {one.sd:.3g}; rounding alone moves a run "
            f"by {one.rounding:.2g}; correlation of runs of one seed {r}{interval}."
        )
    return "\n".join(lines)


def meaning(one: Spread) -> str:
    """What the correlation of a study says for a comparison of two networks, and what it does not."""
    if math.isnan(one.correlation):
        return "What pairing by seed would gain is not known: that takes three or more seeds that differ."
    network = "The correlation is that of a network with itself; that of two networks is usually lower. "
    if one.low > CHAOTIC or one.correlation == 1:
        return network + (
            "Here it is near one: these runs are too short or too smooth for rounding to drive two of one seed apart, "
            "which says nothing about longer training. How far two networks go together is known once both are "
            "trained; only if that is near one too does --paired gain much. Choose it before you see the numbers."
        )
    return network + (
        "Here rounding drives runs of one seed apart, or there are too few seeds to tell: expect no gain from pairing "
        "by seed at the end of training, and plan for Welch's t."
    )


def plan(effect: float, sd: float, seeds: int | None = None, comparisons: int = 1) -> str:
    """Seeds in each arm for a difference of `effect`, as a Markdown table.

    Args:
        sd: over seeds, measured on `seeds` of them; None: it is known.
        comparisons: that are decided together, such as arms against one baseline.
    """
    needed = partial(statistics.seeds_needed, effect=effect, alpha=LEVEL / comparisons)
    lines = [
        "| spread over seeds | to find the difference | to show that there is less | for a verdict either way |",
        "|---|---|---|---|",
    ]
    spreads = {f"sd {sd:.3g}" + (f", as measured on {seeds} seeds" if seeds else ""): sd}
    if seeds:
        limit = statistics.sd_limit(sd, seeds - 1)
        spreads[f"sd {limit:.3g}, which the true one exceeds in 1 of 5 such studies"] = limit
    rows = {words: needed(value) for words, value in spreads.items()}
    for r in CORRELATIONS:
        change = sd * math.sqrt(2 * (1 - r))
        rows[f"sd {sd:.3g}, pairs that correlate {r:g}"] = needed(change, pairs=True)
    lines += [f"| {words} | {a:,} | {b:,} | {max(a, b):,} |" for words, (a, b) in rows.items()]
    corrected = f", corrected for {comparisons} comparisons" if comparisons > 1 else " for one comparison"
    return "\n".join(lines) + (
        f"\n\nSeeds in each arm for a difference of {effect:g}, power {statistics.GOAL:.0%}, level 5 %{corrected}, by "
        "Welch's t (of pairs, the paired t: --paired) and by two one-sided tests. Decide number and test before the "
        "first look, and keep to them."
    )

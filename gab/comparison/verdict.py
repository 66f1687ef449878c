"""One arm against the baseline: every number of the comparison, and the word that it comes to."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from gab.comparison import statistics
from gab.comparison.arms import Arm, Group, Pair, pairs
from gab.comparison.runs import Endpoint
from gab.comparison.statistics import Estimate, McNemar

LEVEL = 0.05
BETTER, WORSE, EQUIVALENT, INCONCLUSIVE = "better", "worse", "equivalent", "inconclusive"


@dataclass(frozen=True)
class Rules:
    """What is decided before the numbers are looked at.

    Attributes:
        delta: the smallest difference that matters, in the unit of the endpoint.
        paired: whether the verdict is by the paired t instead of Welch's.
    """

    delta: float
    paired: bool = False


@dataclass(frozen=True)
class Comparison:
    """An arm against the baseline of its group, by one endpoint. The last three are set by `decide`.

    Attributes:
        p_holm, p_rule_out: p of a difference and of equivalence, corrected for the family.
        family: number of comparisons that are decided together.
    """

    group: Group
    baseline: Arm
    arm: Arm
    endpoint: Endpoint
    rules: Rules
    p_holm: float = math.nan
    p_rule_out: float = math.nan
    family: int = 1

    @cached_property
    def values(self) -> tuple[np.ndarray, np.ndarray]:
        """The endpoint of every run of the baseline and of the arm, by seed."""
        return scores(self.baseline, self.endpoint), scores(self.arm, self.endpoint)

    @cached_property
    def pairs(self) -> list[Pair]:
        """Runs of one seed, whatever their records say."""
        return pairs(self.baseline, self.arm)

    @cached_property
    def true_pairs(self) -> list[Pair]:
        """Pairs whose records do not contradict that they saw the same images."""
        return [pair for pair in self.pairs if pair.same_images is not False]

    @cached_property
    def paired_values(self) -> tuple[np.ndarray, np.ndarray]:
        return (
            np.array([self.endpoint.of(pair.a) for pair in self.true_pairs]),
            np.array([self.endpoint.of(pair.b) for pair in self.true_pairs]),
        )

    @property
    def difference(self) -> float:
        """Arm minus baseline: of pairs, where the verdict is by them, else of the means over all seeds."""
        if self.main is not None:
            return self.main.difference
        a, b = self.values
        return float(b.mean() - a.mean())

    @cached_property
    def welch(self) -> Estimate | None:
        """Welch's t; None with one seed in an arm."""
        a, b = self.values
        return statistics.welch(a, b, LEVEL) if min(len(a), len(b)) > 1 else None

    @cached_property
    def paired(self) -> Estimate | None:
        """The paired t; None with fewer than two pairs."""
        a, b = self.paired_values
        return statistics.paired(a, b, LEVEL) if len(a) > 1 else None

    @property
    def main(self) -> Estimate | None:
        """The test that the verdict uses."""
        return self.paired if self.rules.paired else self.welch

    @cached_property
    def correlation(self) -> tuple[float, float, float]:
        """Correlation of the pairs, and its 95 % interval; NaN with fewer than three."""
        return statistics.correlation(*self.paired_values)

    @cached_property
    def crossed(self) -> Estimate | None:
        """The crossed bootstrap; None where predictions of the endpoint are not kept, or seeds are too few."""
        together = self.rules.paired or (len(self.true_pairs) == len(self.baseline.runs) == len(self.arm.runs))
        chosen = [[pair.a for pair in self.true_pairs], [pair.b for pair in self.true_pairs]]
        if not together:
            chosen = [[arm.runs[seed] for seed in arm.seeds] for arm in (self.baseline, self.arm)]
        if min(map(len, chosen)) < 2 or len({run.seed[1] for runs in chosen for run in runs}) > 1:
            return None  # one seed; or other images in other runs
        images = [[self.endpoint.by_image(run) for run in runs] for runs in chosen]
        if any(one is None for arm in images for one in arm):
            return None
        a, b = (np.stack([one for one in arm if one is not None]) for arm in images)
        return statistics.crossed_bootstrap(a, b, pairs=together, alpha=LEVEL)

    @cached_property
    def checkpoints(self) -> McNemar | None:
        """Where both arms are one run each, by what predictions tell of: validation images, right and wrong."""
        if self.endpoint != Endpoint("top1") or len(self.baseline.runs) != 1 or len(self.arm.runs) != 1:
            return None
        a, b = self.baseline.first.predicted, self.arm.first.predicted
        return statistics.mcnemar(a.right, b.right) if a is not None and b is not None else None

    @cached_property
    def sd(self) -> float:
        """Over seeds, pooled from both arms; where the verdict is by pairs, of their differences. NaN of one seed."""
        if self.main is None:
            return math.nan
        if self.rules.paired:
            a, b = self.paired_values
            return float((b - a).std(ddof=1))
        squares = sum(float(((each - each.mean()) ** 2).sum()) for each in self.values)
        return math.sqrt(squares / (sum(map(len, self.values)) - 2))

    @cached_property
    def seeds_needed(self) -> int | None:
        """Seeds in each arm that would decide: find a difference of delta, or show that there is less.

        At Bonferroni's level: Holm's is no stricter, whatever the other comparisons of the family come to.
        """
        if self.main is None or not self.main.error:
            return None
        level = LEVEL / self.family
        return max(statistics.seeds_needed(self.sd, self.rules.delta, pairs=self.rules.paired, alpha=level))

    @property
    def word(self) -> str:
        """The verdict: better, worse, equivalent or inconclusive."""
        estimate = self.main
        if estimate is not None and self.p_holm < LEVEL:
            return BETTER if (estimate.difference > 0) != self.endpoint.is_loss else WORSE
        return EQUIVALENT if self.p_rule_out < LEVEL else INCONCLUSIVE


def scores(arm: Arm, endpoint: Endpoint) -> np.ndarray:
    """The endpoint of every run, by seed."""
    return np.array([endpoint.of(arm.runs[seed]) for seed in arm.seeds])


def decide(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The same, with p values that are corrected for their number by Holm; equivalence is a family of its own."""

    def p_rule_out(one: Comparison) -> float:
        return statistics.equivalence(one.main, one.rules.delta) if one.main else math.nan

    found = statistics.holm([one.main.p if one.main else math.nan for one in comparisons])
    ruled_out = statistics.holm([p_rule_out(one) for one in comparisons])
    return [
        replace(one, p_holm=p, p_rule_out=q, family=len(comparisons))
        for one, p, q in zip(comparisons, found, ruled_out, strict=True)
    ]

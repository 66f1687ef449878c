"""Verdicts of whole studies, simulated: what is promised of a number of seeds holds, however many arms there are."""

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from gab.comparison.arms import Arm, Group
from gab.comparison.runs import Endpoint, Run
from gab.comparison.verdict import BETTER, EQUIVALENT, Comparison, Rules, decide

DELTA = SD = 0.3
TRIALS = 300
SLACK = 3 * math.sqrt(0.8 * 0.2 / TRIALS)  # three standard errors of a share of 4 in 5


def study(arms: Iterable[np.ndarray]) -> list[Comparison]:
    """Every arm against the first; an arm is its scores, a run each."""
    made = [
        Arm(str(place), {}, {(seed, 0): Run(Path(), {}, {}, [{"top1": v}]) for seed, v in enumerate(scores.tolist())})
        for place, scores in enumerate(arms)
    ]
    group = Group("made", {}, made)
    return decide([Comparison(group, made[0], arm, Endpoint("top1"), Rules(DELTA)) for arm in made[1:]])


def promised(comparisons: int) -> int:
    """Seeds that would decide, where the measured spread is SD."""
    two = np.array([-SD, SD]) / math.sqrt(2)
    needed = study([two] * (comparisons + 1))[0].seeds_needed
    assert needed is not None
    return needed


@pytest.mark.parametrize("comparisons", [1, 6])
@pytest.mark.parametrize(
    ("effect", "others", "word"),
    [(DELTA, 0.0, BETTER), (0.0, DELTA, EQUIVALENT)],  # what Holm helps least: the others come to nothing
)
def test_the_seeds_that_would_decide_do_so_in_4_of_5_studies(
    comparisons: int, effect: float, others: float, word: str
) -> None:
    random, seeds = np.random.default_rng(0), promised(comparisons)
    means = np.array([0.0, effect, *[others] * (comparisons - 1)])[:, None]
    words = [study(means + SD * random.standard_normal((len(means), seeds)))[0].word for _ in range(TRIALS)]
    assert np.mean([each == word for each in words]) >= 0.8 - SLACK


def test_more_comparisons_take_more_seeds() -> None:
    assert [promised(comparisons) for comparisons in (1, 3, 6, 12)] == [18, 25, 29, 33]

"""Every statistic against SciPy, or against a simulation whose truth is known."""

import math

import numpy as np
import pytest
from scipy import stats

from gab.comparison import statistics
from gab.comparison.statistics import Estimate

TRIALS = 4000
SLACK = 4 * math.sqrt(0.05 * 0.95 / TRIALS)  # four standard errors of a share of 5 %


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def test_welch_and_paired_are_scipys() -> None:
    a, b = 80 + 0.3 * normal(5), 80.4 + 0.1 * normal(8, seed=1)
    ours, theirs = statistics.welch(a, b), stats.ttest_ind(b, a, equal_var=False)
    interval = theirs.confidence_interval(0.95)
    assert (ours.p, ours.df, ours.low, ours.high) == pytest.approx((theirs.pvalue, theirs.df, *interval))
    ours, theirs = statistics.paired(a, b[:5]), stats.ttest_rel(b[:5], a)
    interval = theirs.confidence_interval(0.95)
    assert (ours.p, ours.df, ours.low, ours.high) == pytest.approx((theirs.pvalue, 4, *interval))
    assert ours.difference == pytest.approx((b[:5] - a).mean())


def test_without_spread_nothing_is_claimed() -> None:
    for estimate in (statistics.welch(np.full(3, 80.0), np.full(3, 81.0)), statistics.paired(np.ones(2), np.ones(2))):
        assert math.isnan(estimate.p)
        assert estimate.low == -math.inf
        assert math.isnan(statistics.equivalence(estimate, 0.5))


def test_interval_covers_and_tests_have_their_size_under_a_a() -> None:
    """Four and seven seeds of unequal spread, correlated pairs: nothing differs, so 5 % are found."""
    a, b = 0.5 * normal(TRIALS, 4), 0.2 * normal(TRIALS, 7, seed=1)
    found = [statistics.welch(*each) for each in zip(a, b)]
    assert np.mean([each.p < 0.05 for each in found]) == pytest.approx(0.05, abs=SLACK)
    assert np.mean([each.low <= 0 <= each.high for each in found]) == pytest.approx(0.95, abs=SLACK)
    both = normal(TRIALS, 5, seed=2)
    pairs = [statistics.paired(*each) for each in zip(both + 0.3 * normal(TRIALS, 5, seed=3), both)]
    assert np.mean([each.p < 0.05 for each in pairs]) == pytest.approx(0.05, abs=SLACK)


def test_equivalence_has_its_size_at_the_edge() -> None:
    """Where the difference is delta itself, 5 % are called equivalent."""
    a, b = normal(TRIALS, 8), 0.8 + normal(TRIALS, 8, seed=1)
    p = [statistics.equivalence(statistics.welch(*each), 0.8) for each in zip(a, b)]
    assert np.mean(np.array(p) < 0.05) <= 0.05 + SLACK
    wide = [statistics.equivalence(statistics.welch(*each), 4.0) for each in zip(a, b + 3.2)]
    assert np.mean(np.array(wide) < 0.05) == pytest.approx(0.05, abs=SLACK)


def test_equivalence_is_two_one_sided_tests() -> None:
    a, b = normal(6), 0.1 + normal(6, seed=1)
    above = stats.ttest_ind(b, a - 0.9, equal_var=False, alternative="greater").pvalue
    below = stats.ttest_ind(b, a + 0.9, equal_var=False, alternative="less").pvalue
    assert statistics.equivalence(statistics.welch(a, b), 0.9) == pytest.approx(max(above, below))


def test_correlation_is_scipys() -> None:
    a = normal(9)
    b = a + normal(9, seed=1)
    theirs = stats.pearsonr(a, b)
    assert statistics.correlation(a, b) == pytest.approx((theirs.statistic, *theirs.confidence_interval(0.95)))
    assert statistics.correlation(a[:3], b[:3])[1:] == (-1.0, 1.0)
    assert math.isnan(statistics.correlation(np.ones(4), a[:4])[0])
    assert math.isnan(statistics.correlation(a[:2], b[:2])[0])  # it could only be 1 or -1


def test_holm() -> None:
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # by hand
    assert statistics.holm([0.5]) == [0.5]
    adjusted = statistics.holm([0.01, math.nan])
    assert adjusted[0] == pytest.approx(0.02)
    assert math.isnan(adjusted[1])
    families = np.random.default_rng(0).random((TRIALS, 5))  # no effect anywhere
    any_found = [min(statistics.holm(list(family))) < 0.05 for family in families]
    assert np.mean(any_found) == pytest.approx(0.05, abs=SLACK)


def test_mcnemar_is_the_binomial_test_of_the_images_that_differ() -> None:
    a = np.array([True] * 30 + [False] * 12 + [True] * 50)
    b = np.array([False] * 30 + [True] * 12 + [True] * 50)
    found = statistics.mcnemar(a, b)
    assert found == pytest.approx((30, 12, stats.binomtest(12, 42).pvalue))
    assert statistics.mcnemar(a, a).p == 1.0


@pytest.mark.parametrize("pairs", [True, False])
@pytest.mark.parametrize(("seeds", "images", "of_seeds", "of_images"), [(4, 300, 0.03, 0.3), (8, 60, 0.0, 0.5)])
def test_crossed_bootstrap_covers(pairs: bool, seeds: int, images: int, of_seeds: float, of_images: float) -> None:
    """A crossed random-effects model: a part of the seed, one of the image, which the arms differ in, and a rest."""
    random = np.random.default_rng(5)
    covered = []
    for _ in range(200):
        image, change = random.standard_normal(images), of_images * random.standard_normal(images)
        a, b = (
            of_seeds * random.standard_normal((seeds, 1)) + image + random.standard_normal((seeds, images))
            for _ in range(2)
        )
        found = statistics.crossed_bootstrap(a, b + change + 0.7, pairs=pairs, draws=200)
        covered.append(found.low <= 0.7 <= found.high)
    assert np.mean(covered) >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / 200)


def test_crossed_bootstrap_knows_both_sources() -> None:
    """With seeds or images alone it has their standard error, where the other's part is nothing."""
    seeds = np.repeat(normal(6, 1), 50, axis=1)
    only_seeds = statistics.crossed_bootstrap(np.zeros((6, 50)), seeds, pairs=True, draws=4000)
    assert only_seeds.error == pytest.approx(seeds[:, 0].std(ddof=1) / math.sqrt(6), rel=0.06)
    images = np.repeat(normal(1, 400), 6, axis=0)
    only_images = statistics.crossed_bootstrap(np.zeros((6, 400)), images, pairs=True, draws=4000)
    assert only_images.error == pytest.approx(images[0].std() / 20, rel=0.06)
    assert only_images.difference == pytest.approx(images.mean())
    again = statistics.crossed_bootstrap(np.zeros((6, 400)), images, pairs=True, draws=4000)
    assert again == only_images


def test_power_is_what_a_simulation_finds() -> None:
    n, sd, effect = 6, 0.25, 0.4
    error = sd * math.sqrt(2 / n)
    a, b = sd * normal(TRIALS, n), sd * normal(TRIALS, n, seed=1)
    found = np.mean([statistics.welch(x, y + effect).p < 0.05 for x, y in zip(a, b)])
    assert statistics.power_to_find(effect, error, 2 * n - 2) == pytest.approx(found, abs=0.025)
    shown = np.mean([statistics.equivalence(statistics.welch(x, y), effect) < 0.05 for x, y in zip(a, b)])
    assert statistics.power_to_rule_out(effect, error, 2 * n - 2) == pytest.approx(shown, abs=0.025)


def test_seeds_needed_is_the_first_number_that_suffices() -> None:
    """Textbook: a difference of one sd needs 17 in each of two groups, or 10 pairs (power 0.8, two-sided 5 %)."""
    find, rule_out = statistics.seeds_needed(1.0, 1.0)
    assert find == 17
    power = [statistics.power_to_rule_out(1.0, math.sqrt(2 / n), 2 * n - 2) for n in (rule_out - 1, rule_out)]
    assert power[0] < 0.8 <= power[1]
    assert statistics.seeds_needed(1.0, 1.0, pairs=True)[0] == 10
    assert statistics.seeds_needed(0.01, 1.0)[0] == 2
    assert statistics.seeds_needed(1.0, 1e-4) == (statistics.MOST, statistics.MOST)


def test_sd_limit_is_exceeded_as_often_as_said() -> None:
    measured = normal(TRIALS, 5).std(axis=1, ddof=1)
    limits = [statistics.sd_limit(sd, 4) for sd in measured]
    assert np.mean(np.array(limits) < 1.0) == pytest.approx(0.2, abs=0.03)


def test_estimate_is_the_second_minus_the_first() -> None:
    assert isinstance(found := statistics.welch(np.array([1.0, 2.0]), np.array([4.0, 5.5])), Estimate)
    assert found.difference == pytest.approx(3.25)

"""The statistics of a comparison: functions of arrays, a number for each seed, or for each seed and image.

A difference is always the second arm minus the first. Two things can be meant by "again": other seeds with the same
validation images, which Welch's and the paired t are about, and other seeds and other images of the same kind, which
the crossed bootstrap is about.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from scipy import stats

from gab.random import hash_key

DRAWS = 2000  # of the bootstrap
GOAL = 0.8  # power that a number of seeds is planned for
MOST = 100_000  # seeds; beyond, none is counted
_CHUNK = 100  # draws of the bootstrap at a time: its weights are as large as that many times the images


class Estimate(NamedTuple):
    """A difference with its standard error, degrees of freedom, two-sided p, and interval of level 1 - alpha.

    Without any spread, p is NaN and the interval infinite: nothing is known of what chance does.
    """

    difference: float
    error: float
    df: float
    p: float
    low: float
    high: float


def welch(a: np.ndarray, b: np.ndarray, alpha: float = 0.05) -> Estimate:
    """Welch's t of two independent samples, two or more values in each (Welch, Biometrika 34, 1947)."""
    parts = np.array([np.var(each, ddof=1) / len(each) for each in (a, b)])
    error = math.sqrt(parts.sum())
    df = parts.sum() ** 2 / (parts**2 / [len(a) - 1, len(b) - 1]).sum() if error else math.nan
    return _estimate(float(np.mean(b) - np.mean(a)), error, df, alpha)


def paired(a: np.ndarray, b: np.ndarray, alpha: float = 0.05) -> Estimate:
    """The paired t: values of equal places belong together."""
    change = np.asarray(b) - np.asarray(a)
    return _estimate(float(change.mean()), change.std(ddof=1) / math.sqrt(len(change)), len(change) - 1, alpha)


def _estimate(difference: float, error: float, df: float, alpha: float) -> Estimate:
    if error <= 1e-12 * max(abs(difference), 1.0):
        return Estimate(difference, 0.0, df, math.nan, -math.inf, math.inf)
    reach = stats.t.isf(alpha / 2, df) * error
    p = 2 * stats.t.sf(abs(difference) / error, df)
    return Estimate(difference, error, float(df), float(p), difference - reach, difference + reach)


def equivalence(estimate: Estimate, delta: float) -> float:
    """p of two one-sided tests that the difference lies within ±delta (Schuirmann 1987); NaN without any spread."""
    if not estimate.error:
        return math.nan
    return float(stats.t.sf((delta - abs(estimate.difference)) / estimate.error, estimate.df))


def correlation(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """Pearson's r of pairs, NaN of two, and its 95 % interval by Fisher's z: from four pairs on, else from -1 to 1."""
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan, -1.0, 1.0
    r = float(np.clip(np.corrcoef(a, b)[0, 1], -1.0, 1.0))
    if len(a) < 4 or abs(r) == 1.0:
        return r, -1.0, 1.0
    z, reach = math.atanh(r), stats.norm.isf(0.025) / math.sqrt(len(a) - 3)
    return r, math.tanh(z - reach), math.tanh(z + reach)


def holm(ps: Sequence[float]) -> list[float]:
    """Adjusted p values of a family of tests (Holm, Scand. J. Statist. 6, 1979); NaN, an undecided test, stays."""
    values = np.nan_to_num(np.array(ps, dtype=float), nan=1.0)
    order = np.argsort(values, kind="stable")
    steps = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(steps, 1.0)
    return [math.nan if math.isnan(p) else float(value) for p, value in zip(ps, adjusted, strict=True)]


class McNemar(NamedTuple):
    """Images that one checkpoint alone gets right, and the exact two-sided p that both are equally good."""

    first_only: int
    second_only: int
    p: float


def mcnemar(a: np.ndarray, b: np.ndarray) -> McNemar:
    """The exact test of two checkpoints on the same images; `a` and `b` (images,) bool, right or wrong."""
    first, second = int((a & ~b).sum()), int((b & ~a).sum())
    return McNemar(first, second, min(1.0, 2 * float(stats.binom.cdf(min(first, second), first + second, 0.5))))


def crossed_bootstrap(
    a: np.ndarray, b: np.ndarray, *, pairs: bool, draws: int = DRAWS, alpha: float = 0.05
) -> Estimate:
    """The difference of means over seeds and images, where both are a sample: rows and columns are drawn anew.

    Each draw takes images with replacement, the same for all runs, and seeds with replacement, one fewer than there
    are, which makes their part of the variance unbiased however few they are. The interval is the difference plus and
    minus t times the standard deviation of the draws, with the degrees of freedom of the seeds. Seeds and images drawn
    separately count what is left over more than once, so that the interval is wide rather than narrow (Owen, "The
    pigeonhole bootstrap", Ann. Appl. Stat. 1, 2007). The draws are a function of the shape alone.

    Args:
        a, b: (seeds, images), two seeds or more, the same images; with `pairs`, equal rows belong together and are
            drawn together.
    """
    random = np.random.Generator(np.random.Philox(key=hash_key("crossed bootstrap", *a.shape, *b.shape)))
    drawn = np.empty(draws)
    for first in range(0, draws, _CHUNK):
        count = min(_CHUNK, draws - first)
        images = _times(random, count, a.shape[1], a.shape[1])
        means = [images @ each.T / each.shape[1] for each in (a, b)]  # (draws, seeds)
        if pairs:
            change = _times(random, count, len(a), len(a) - 1) * (means[1] - means[0])
            drawn[first : first + count] = change.sum(axis=1) / (len(a) - 1)
        else:
            one, two = (
                (_times(random, count, mean.shape[1], mean.shape[1] - 1) * mean).sum(axis=1) / (mean.shape[1] - 1)
                for mean in means
            )
            drawn[first : first + count] = two - one
    return _estimate(float(b.mean() - a.mean()), float(drawn.std(ddof=1)), min(len(a), len(b)) - 1, alpha)


def _times(random: np.random.Generator, rows: int, things: int, taken: int) -> np.ndarray:
    """How often each thing is among `taken`, drawn with replacement in every row: (rows, things) float64."""
    drawn = random.integers(things, size=(rows, taken)) + things * np.arange(rows)[:, None]
    return np.bincount(drawn.ravel(), minlength=rows * things).reshape(rows, things).astype(float)


def power_to_find(effect: float, error: float, df: float, alpha: float = 0.05) -> float:
    """The chance that a two-sided t test finds a difference of `effect`, by the noncentral t."""
    limit, centre = stats.t.isf(alpha / 2, df), abs(effect) / error
    wrong_side = np.nan_to_num(stats.nct.cdf(-limit, df, centre))  # NaN in SciPy where it is next to nothing
    return float(stats.nct.sf(limit, df, centre) + wrong_side)


def power_to_rule_out(delta: float, error: float, df: float, alpha: float = 0.05) -> float:
    """The chance that two one-sided tests show equivalence within ±delta where there is no difference at all.

    A mean over the distribution of the measured standard error, of 2000 quantiles.
    """
    measured = error * np.sqrt(stats.chi2.ppf((np.arange(2000) + 0.5) / 2000, df) / df)
    room = (delta - stats.t.isf(alpha, df) * measured) / error
    return float(np.mean(np.where(room > 0, 2 * stats.norm.cdf(room) - 1, 0.0)))


def seeds_needed(sd: float, effect: float, *, pairs: bool = False, alpha: float = 0.05) -> tuple[int, int]:
    """Seeds in each arm to find a difference of `effect`, and to show that there is less, in `GOAL` of all studies.

    Args:
        sd: over seeds, in each of two independent arms; with `pairs`, of the differences of pairs. More than `MOST`
            seeds are counted as that.
    """

    def enough(power: Callable[[float, float, float, float], float], n: int) -> bool:
        error, df = (sd / math.sqrt(n), n - 1) if pairs else (sd * math.sqrt(2 / n), 2 * n - 2)
        return power(effect, error, df, alpha) >= GOAL

    return _first(partial(enough, power_to_find)), _first(partial(enough, power_to_rule_out))


def _first(enough: Callable[[int], bool]) -> int:
    """The first number of seeds, from two on, that is enough."""
    low, high = 1, 2
    while high < MOST and not enough(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return min(high, MOST)


def sd_limit(sd: float, df: int, level: float = 0.8) -> float:
    """What the true standard deviation exceeds with probability 1 - level: `sd` of few seeds is often too small."""
    return sd * math.sqrt(df / stats.chi2.ppf(1 - level, df))

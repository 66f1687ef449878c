"""A comparison in sentences: the verdict, what would decide, and what the records say for and against the pairs."""

import math

from gab.comparison import statistics
from gab.comparison.verdict import BETTER, EQUIVALENT, WORSE, Comparison


def sentence(one: Comparison) -> str:
    """The verdict in words."""
    arm, unit = one.arm.label, one.endpoint.unit
    about = f"on {one.group.label}, by {one.endpoint.words}"
    n, m = len(one.arm.runs), len(one.baseline.runs)
    estimate = one.main
    if estimate is None:
        few = "pairs" if one.rules.paired else "seeds"
        return (
            f"No verdict: {arm} is {one.difference:+.{digits(one)}f} {unit} from {one.baseline.label} {about}, but "
            f"with {m} and {n} runs nothing is known of what chance does; train two or more {few} of each."
        )
    if not estimate.error:
        return (
            f"No verdict: the runs of {arm} and of {one.baseline.label} do not differ among themselves {about}, so "
            "nothing is known of what chance does; look at more images or train more seeds."
        )
    many = f"{len(one.true_pairs)} pairs" if one.rules.paired else f"{m} and {n} seeds"
    interval = (
        f"{estimate.difference:+.{digits(one)}f} {unit} (95 % interval {estimate.low:+.{digits(one)}f} to "
        f"{estimate.high:+.{digits(one)}f}; {many})"
    )
    delta = f"±{one.rules.delta:g} {unit}"
    if one.word in (BETTER, WORSE):
        small = f", though by less than {delta}" if max(abs(estimate.low), abs(estimate.high)) < one.rules.delta else ""
        return f"{arm} is {one.word} than {one.baseline.label} {about}{small}: {interval}, p = {shown_p(one.p_holm)}."
    if one.word == EQUIVALENT:
        return f"{arm} is equivalent to {one.baseline.label} within {delta} {about}: {interval}."
    return f"Inconclusive: {arm} against {one.baseline.label} {about}: {interval}. {would_decide(one)}"


def would_decide(one: Comparison) -> str:
    """How many seeds would decide, by the spread that was measured."""
    needed = one.seeds_needed
    if needed is None:
        return ""
    more = "more than " if needed == statistics.MOST else "about "
    corrected = f", corrected for the {one.family} comparisons" if one.family > 1 else ""
    return (
        f"With the measured spread (sd {one.sd:.{digits(one)}f}), {more}{needed:,} seeds in each arm would find a "
        f"difference of {one.rules.delta:g} {one.endpoint.unit}, or show that there is less, in 4 of 5 such studies"
        f"{corrected}."
    )


def digits(one: Comparison) -> int:
    """Decimals: hundredths of a point, ten-thousandths of a nat."""
    return 4 if one.endpoint.is_loss else 2


def shown_p(p: float) -> str:
    """A p value as it is written."""
    if math.isnan(p):
        return "–"
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def doubts(one: Comparison) -> list[str]:
    """What the records say against the pairs, a sentence each."""
    found = []
    a, b = one.baseline.label, one.arm.label
    if not one.pairs:
        found.append(f"{a} and {b} have no seed in common: nothing is paired.")
    if other := [pair.seed[0] for pair in one.pairs if pair.same_images is False]:
        found.append(
            f"{a} and {b} did not see the same images and crops with {_seeds(other)}, as their records say: not "
            "taken as pairs."
        )
    if unknown := [pair.seed[0] for pair in one.pairs if pair.same_images is None]:
        found.append(f"The records of {_seeds(unknown)} do not say which images {a} and {b} saw.")
    moved = {name for pair in one.pairs for name in pair.moved}
    if moved:
        names = ", ".join(sorted(moved)[:4]) + (", ..." if len(moved) > 4 else "")
        found.append(f"{a} and {b} did not begin with the same weights: {len(moved)} of those shared differ ({names}).")
    return found


def _seeds(seeds: list[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def proof(one: Comparison) -> str:
    """What the records say for the pairs."""
    good = [pair for pair in one.pairs if pair.same_images and not pair.moved]
    if not good:
        return ""
    shared = [pair.shared for pair in good if pair.shared]
    start = f" and began with the same {shared[0]} shared tensors" if shared else ""
    return (
        f"{len(good)} of {len(one.pairs)} pairs saw the same images with the same crops and flips in every epoch"
        f"{start}, by the digests of their records."
    )

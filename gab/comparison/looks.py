"""Earlier looks at a comparison: what is changed because of what a look showed makes p values too small.

That is seeds that are added or left out, another endpoint, another delta, another test.
"""

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gab.comparison.verdict import Comparison
from gab.errors import UserError

FILE = "comparison.json"
TOO_SMALL = "so that p values and intervals are not those of a plan: chance was given more than one try."

Look = dict[str, Any]


def remember(out: Path, comparisons: Sequence[Comparison]) -> list[str]:
    """Adds this look to OUT/comparison.json; returns a sentence for all that differed in an earlier one.

    Raises:
        UserError: the file cannot be read.
    """
    path = out / FILE
    try:
        looks: list[Look] = json.loads(path.read_text()) if path.is_file() else []
        told = [note for one in comparisons for note in _changes(looks, one)]
        known = [_what(look) for look in looks]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): restore it, or choose another --out and report that you did"
        ) from error
    now = datetime.now(UTC).isoformat(timespec="seconds")
    new = [{"time": now, **look} for one in comparisons if _what(look := _look(one)) not in known]
    path.write_text(json.dumps([*looks, *new], indent=1) + "\n")
    return told


def _changes(looks: list[Look], one: Comparison) -> Iterator[str]:
    """A sentence for all that was otherwise in earlier looks at the same arms that share seeds with this one.

    Two looks without a common seed are separate studies.
    """
    now, who = _look(one), f"{one.arm.label} and {one.baseline.label} on {one.group.label}"
    seeds = _seeds(now)
    near = [each for each in looks if each["arms"].keys() == now["arms"].keys() and _seeds(each) & seeds]
    if other := [each for each in near if _seeds(each) != seeds]:
        done = "added" if seeds - _seeds(other[0]) else "left out"
        order = (one.arm.fingerprint, one.baseline.fingerprint)
        sizes = (" and ".join(str(len(each["arms"][arm])) for arm in order) for each in other)
        yield (
            f"Seeds were {done} after looking: {who} were compared with {', '.join(dict.fromkeys(sizes))} seeds before "
            f"{_first(other)}, {TOO_SMALL}"
        )
    same_endpoint = [each for each in near if each["endpoint"] == now["endpoint"]]  # else delta has another unit
    for what, by, alike in (("endpoint", "by ", near), ("delta", "with ±", same_endpoint), ("test", "by ", near)):
        if other := [each for each in alike if each[what] != now[what]]:
            before = ", ".join(dict.fromkeys(f"{by}{each[what]}" for each in other))
            yield (
                f"The {what} was changed after looking: {who} were compared {before} before {_first(other)}, "
                f"{TOO_SMALL}"
            )


def _first(looks: list[Look]) -> str:
    return f"(first on {looks[0]['time'].partition('T')[0]})"


def _seeds(look: Look) -> set[tuple[Any, ...]]:
    """The seeds of both arms."""
    return {(arm, *seed) for arm, seeds in look["arms"].items() for seed in seeds}


def _look(one: Comparison) -> Look:
    """`about` is for people: labels depend on what else is in the call."""
    return {
        "about": f"{one.arm.label} against {one.baseline.label}, {one.group.label}",
        "arms": {arm.fingerprint: [list(seed) for seed in arm.seeds] for arm in (one.baseline, one.arm)},
        "endpoint": one.endpoint.name,
        "delta": one.rules.delta,
        "test": "paired t" if one.rules.paired else "Welch's t",
    }


def _what(look: Look) -> Look:
    return {key: value for key, value in look.items() if key not in ("time", "about")}

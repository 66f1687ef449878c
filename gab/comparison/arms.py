"""Which runs are compared with which: arms of runs that share everything but what is studied, and their pairs."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gab.comparison.runs import SEEDS, Run
from gab.errors import UserError

VARIANT = "variant"  # the network by its name: all settings of the model


@dataclass
class Arm:
    """Runs that differ in their seeds alone."""

    label: str
    values: dict[str, Any]  # of what is studied
    runs: dict[tuple[int, int], Run] = field(default_factory=dict)  # by seed

    @property
    def seeds(self) -> list[tuple[int, int]]:
        return sorted(self.runs)

    @property
    def first(self) -> Run:
        return self.runs[self.seeds[0]]

    @property
    def settings(self) -> dict[str, Any]:
        """What may change results, and what is studied even if it may not."""
        return self.first.settings | {key: value for key, value in self.values.items() if key != VARIANT}

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits, equal for equal settings, whatever else is compared with them."""
        known = {key: value for key, value in self.settings.items() if value is not None}
        return hashlib.blake2b(_text(known).encode(), digest_size=8).hexdigest()


@dataclass
class Group:
    """Arms that share everything but what is studied, in the order of the command line."""

    label: str
    settings: dict[str, Any]
    arms: list[Arm]


def studied(runs: Sequence[Run], by: str | None) -> list[str]:
    """The settings that `--by` names, separated by commas; without it, all in which the runs differ but the data's.

    Raises:
        UserError: no run has such a setting.
    """
    differing = different(run.settings for run in runs)
    if by is None:
        return [key for key in differing if not key.startswith("data.")]
    keys = by.split(",")
    for key in keys:
        if key != VARIANT and not any(key in run.config for run in runs):
            raise UserError(f"no run has a setting {key}: the runs differ in {', '.join(differing) or 'their seeds'}")
    return keys


def match(runs: Sequence[Run], keys: list[str]) -> list[Group]:
    """Groups of arms.

    Raises:
        UserError: two runs of an arm differ in more than their seeds, or not at all.
    """
    groups: dict[str, Group] = {}
    for run in runs:
        shared = {key: value for key, value in run.settings.items() if not _belongs(key, keys)}
        group = groups.setdefault(_text(shared), Group("", shared, []))
        values = {key: run.variant if key == VARIANT else run.config.get(key) for key in keys}
        arm = next((arm for arm in group.arms if arm.values == values), None)
        if arm is None:
            group.arms.append(arm := Arm(_label(values, run), values))
        _enter(arm, run)
    _name(list(groups.values()))
    return list(groups.values())


def _enter(arm: Arm, run: Run) -> None:
    if run.seed in arm.runs:
        raise UserError(
            f"{arm.runs[run.seed].folder} and {run.folder} are the same run twice (seed {run.seed[0]}): give one of "
            "them, or name the setting that tells them apart by --by KEY"
        )
    other = next(iter(arm.runs.values()), run)
    if mixed := different([other.settings, run.settings]):
        raise UserError(
            f"{other.folder} and {run.folder} are both {arm.label} but differ in {', '.join(mixed)}: give only one "
            f"kind, or compare them by --by {','.join(mixed)}"
        )
    arm.runs[run.seed] = run


def _belongs(key: str, keys: list[str]) -> bool:
    return key in keys or (VARIANT in keys and key.startswith("model."))


def _label(values: dict[str, Any], run: Run) -> str:
    if not values or all(key == VARIANT for key in values):
        return run.variant
    return ", ".join(f"{key}={'null' if value is None else value}".lower() for key, value in values.items())


def _name(groups: list[Group]) -> None:
    """Label groups by their data set and what differs within it, and arms of many settings by their network."""
    for group in groups:
        keys, variants = [*group.arms[0].values], [arm.first.variant for arm in group.arms]
        if len(keys) > 1 and all(key.startswith("model.") for key in keys) and len(set(variants)) == len(variants):
            for arm, name in zip(group.arms, variants, strict=True):
                arm.label = name
    for group in groups:
        data = group.settings.get("data.name", "data")
        differing = different(each.settings for each in groups if each.settings.get("data.name", "data") == data)
        others = [key for key in differing if not key.startswith(("data.", "model."))]
        sizes = any(key.startswith("model.") for key in differing)
        words = [str(data)]
        words += [str(group.settings.get("model.base", group.arms[0].first.variant))] if sizes else []
        group.label = ", ".join([*words, *(f"{key}={group.settings.get(key)}" for key in others)])
    seen = [group.label for group in groups]
    for number, group in enumerate(groups, start=1):
        if seen.count(group.label) > 1:  # told apart by details of the data or the network
            group.label += f" ({number})"


def closest(groups: Sequence[Group]) -> list[str]:
    """The settings in which the two most similar groups differ."""
    pairs = [
        different([a.settings, b.settings])
        for i, a in enumerate(groups)
        for b in groups[i + 1 :]
        if a.arms[0].values != b.arms[0].values
    ]
    return min(pairs, key=len, default=[])


def different(settings: Iterable[dict[str, Any]]) -> list[str]:
    """The keys whose values are not the same everywhere, seeds left out."""
    many = list(settings)
    keys = sorted({key for each in many for key in each} - set(SEEDS))
    return [key for key in keys if len({_text(each.get(key)) for each in many}) > 1]


def _text(value: Any) -> str:
    """Equal for equal values, however they are written: 5 is 5.0."""
    if isinstance(value, dict):
        return repr(sorted((key, _text(item)) for key, item in value.items()))
    return repr(float(value)) if type(value) is int else repr(value)


@dataclass(frozen=True)
class Pair:
    """Two runs of one seed.

    Attributes:
        same_images: whether they saw the same images with the same crops and flips in every epoch.
        shared: tensors that both have at the start by one name.
        moved: those of them whose values differ.

    None where the records do not tell.
    """

    seed: tuple[int, int]
    a: Run
    b: Run
    same_images: bool | None
    shared: int | None
    moved: list[str]


def pairs(a: Arm, b: Arm) -> list[Pair]:
    """The runs of seeds that both arms have."""
    return [pair_of(a.runs[seed], b.runs[seed]) for seed in a.seeds if seed in b.runs]


def pair_of(a: Run, b: Run) -> Pair:
    """Two runs of one seed, and what their records say of how they began."""
    images = a.images == b.images if a.images and b.images else None
    one, two = a.start.get("weights"), b.start.get("weights")
    if not one or not two:
        return Pair(a.seed, a, b, images, None, [])
    shared = [name for name in one if name in two]
    moved = [name for name in shared if one[name] != two[name]]
    return Pair(a.seed, a, b, images, len(shared), moved)


def check_data(group: Group) -> None:
    """Refuse runs that were not evaluated on the same images.

    Raises:
        UserError: naming two of them.
    """
    runs = [run for arm in group.arms for run in arm.runs.values()]
    by_split: dict[int, Run] = {}
    for run in runs:
        first = by_split.setdefault(run.seed[1], run)
        for what in ("eval_images", "classes"):
            one, two = first.start.get(what), run.start.get(what)
            if one is not None and two is not None and one != two:
                raise UserError(
                    f"{first.folder} and {run.folder} have different data ({what} {one} and {two}): compare runs of "
                    "one data set"
                )
        one, two = first.predicted, run.predicted
        if one is None or two is None:
            continue
        if not (np.array_equal(one.image, two.image) and np.array_equal(one.label, two.label)):
            raise UserError(
                f"{first.folder} and {run.folder} were evaluated on different images, as their predictions.npz say: "
                "compare runs of one data set"
            )

"""docs/settings.md is up to date and complete, and the choices that it names are those that the code knows."""

import re
from dataclasses import dataclass
from typing import Any

import pytest
from hydra.core.config_store import ConfigStore

from conf.errors import known_keys
from gab.attention import choice
from gab.evaluators import readouts, rollout
from gab.models.bias import BIASES
from gab.models.gaussian import CLASS_BIASES
from gab.models.joins import JOINS
from gab.models.life import AUX_KEYS
from gab.models.position import POSITIONS
from gab.models.position_norm import NORMS
from gab.models.sockets import STARTS
from gab.training.distillation import KINDS
from gab.training.objective import LOSSES
from scripts import settings

PAGE = settings.PAGE.read_text()
ROWS = [re.findall(r"`([^`]+)`", row) for row in re.findall(r"^\| (`[^|]+\|[^|]+)\|", PAGE, re.MULTILINE)]
CHOICES: dict[str, Any] = {
    "model.gaussian.class_bias": CLASS_BIASES,
    "model.position": POSITIONS,
    "model.join": JOINS,
    "model.join_norm": NORMS,
    "model.rel_pos": ("none", *BIASES),
    "model.rel_pos_start": STARTS,
    "model.aux_key": AUX_KEYS,
    "train.loss": LOSSES,
    "distillation.kind": KINDS,
    "evaluators.erf.readout": readouts.READOUTS,
    "evaluators.rollout.row": rollout.ROWS,
    "evaluators.rollout.fusion": rollout.FUSIONS,
    "evaluators.rollout.mode": rollout.MODES,
    "run.attention": choice.NAMES,
}


def test_the_page_is_up_to_date() -> None:
    assert PAGE.partition(settings.MARK)[2].strip() == settings.tables().strip(), "run scripts/settings.py"


def test_every_setting_is_there() -> None:
    known = known_keys()
    single = {key for key in known if not any(other.startswith(f"{key}.") for other in known)}
    sets = {re.sub(r"^evaluators\.(v2|a|r|sketch|c)\.", "evaluators.NAME.", key) for key in single}
    assert sets - {key for key, *_ in ROWS} == {"evaluators.top1"}  # which has no settings


@pytest.mark.parametrize("key", CHOICES)
def test_choices(key: str) -> None:
    """In the first table that has the setting, which for those of networks is the ViT's."""
    assert set(next(choices for name, *choices in ROWS if name == key)) == set(CHOICES[key])


def test_help_offers_files_alone() -> None:
    assert ConfigStore.instance().repo.keys().isdisjoint({"model", "evaluators"})


@pytest.mark.parametrize(
    ("comment", "choices", "what"),
    [
        ("plain words", [], "plain words"),
        ("what: a | b", ["a", "b"], "what"),
        ("of x: a (one) | b | c (or: two); null: none", ["a", "b", "c"], "of x: `a` (one), `c` (or: two); null: none"),
    ],
)
def test_forms_of_comments(comment: str, choices: list[str], what: str) -> None:
    assert settings.explained("key", comment) == (choices, what)


def test_a_comment_of_another_form_is_refused() -> None:
    with pytest.raises(ValueError, match="optim.name: 'adamw | sgd' is not of the form"):
        settings.explained("optim.name", "adamw | sgd")


def test_a_setting_says_what_it_does() -> None:
    with pytest.raises(ValueError, match="x.silent: say beside it what it does"):
        list(settings.rows(Silent, "x", {}, []))


def test_a_default_is_one_of_the_choices() -> None:
    with pytest.raises(ValueError, match="x.one: its default c is not among its choices a, b"):
        list(settings.rows(Wrong, "x", {}, []))


@dataclass
class Silent:
    """A schema without comments."""

    silent: int = 0


@dataclass
class Wrong:
    """A schema whose default is no choice."""

    one: str = "c"  # which: a | b

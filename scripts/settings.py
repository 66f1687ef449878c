"""The settings: writes the tables of docs/settings.md from the schema of the config and the comments in it.

`python scripts/settings.py` after a change of any setting. Beside every field stands what it does, in one of two forms:

    WHAT
    WHAT: CHOICE (WHY) | CHOICE | CHOICE; MORE        what follows a choice or all of them may be missing

A field that says nothing means what it means in the schema that its own extends, or in the table before.
"""

import ast
import inspect
import io
import json
import re
import sys
import tokenize
from collections.abc import Container, Iterator
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that the script also runs where the project is not installed

from hydra import compose, initialize_config_dir
from omegaconf import MISSING, DictConfig, OmegaConf

from conf.schema import EVALUATORS, NETWORKS, Config, EvaluateConfig
from gab.training.run_folder import essential

CONF = ROOT / "conf"
PAGE = ROOT / "docs" / "settings.md"
MARK = "<!-- From here on by scripts/settings.py. -->\n"

CHOICE = r"[^|:;()]+(?: \([^()]+\))?"
FORM = re.compile(rf"(?P<what>.+?): (?P<choices>{CHOICE}(?: \| {CHOICE})+)(?P<more>; .+)?")
WORDS = {int: "whole number", float: "number", str: "text", bool: "`true`, `false`", list: "list", dict: "map"}


def comments(schema: type) -> dict[str, str]:
    """What stands beside the fields of a schema, or of those that it extends."""
    said = comments(schema.__bases__[0]) if is_dataclass(schema.__bases__[0]) else {}
    source = inspect.getsource(schema)
    body = ast.parse(source).body[0].body  # type: ignore[attr-defined]
    starts = [(node.lineno, node.target.id) for node in body if isinstance(node, ast.AnnAssign)]  # type: ignore[union-attr]
    found: dict[str, list[str]] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            name = [field for line, field in starts if line <= token.start[0]][-1]
            found.setdefault(name, []).append(token.string.removeprefix("# "))
    return said | {name: " ".join(lines) for name, lines in found.items()}


def explained(key: str, comment: str) -> tuple[list[str], str]:
    """The choices of a setting, if it has any, and what it does; raises ValueError for a comment of another form."""
    if " | " not in comment:
        return [], comment
    form = FORM.fullmatch(comment)
    if form is None:
        raise ValueError(f"{key}: {comment!r} is not of the form `WHAT: CHOICE (WHY) | CHOICE; MORE`")
    pairs = [choice.partition(" (") for choice in form["choices"].split(" | ")]
    reasons = ", ".join(f"`{choice}` ({why}" for choice, _, why in pairs if why)
    what = f"{form['what']}: {reasons}" if reasons else form["what"]
    return [choice for choice, _, _ in pairs], what + (form["more"] or "")


def allowed(kind: Any, choices: list[str]) -> str:
    """What a setting takes: its choices, or its type in words."""
    options = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    null = ["`null`"] if type(None) in options else []
    if choices:
        return ", ".join([f"`{choice}`" for choice in choices] + null)
    return ", ".join([WORDS[get_origin(option) or option] for option in options if option is not type(None)] + null)


def in_yaml(value: Any) -> str:
    """A value as a config has it."""
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def start(field: Field) -> Any:
    """The value of a field that nobody sets."""
    return field.default if field.default_factory is NO_DEFAULT else field.default_factory()


@cache
def composed() -> DictConfig:
    """What `python train.py` takes, with every evaluator, and with the names of its files."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", [f"evaluators=[{','.join(EVALUATORS)}]"], return_hydra_config=True)


def of_files(key: str, names: list[str], default: Any) -> Iterator[str]:
    """The values of a setting that files set otherwise, those of `names` that take the place of NAME in its key."""
    for name in names:
        path = key.replace("NAME", name)
        node, _, last = path.rpartition(".")
        section = OmegaConf.select(composed(), node) if node else composed()
        value = OmegaConf.to_container(section, resolve=False).get(last, default)  # type: ignore[union-attr]
        if value != default and value != MISSING:
            yield f"`{name}`: {in_yaml(value)}"


def rows(
    schema: Any, path: str, said: dict[str, str], names: list[str], only: Container[str] | None = None
) -> Iterator[str]:
    """The rows of a schema's fields, those of the sections in it too.

    Args:
        path: of the schema in the config.
        said: comments of the tables before, by key; takes those of this one.
        names: files whose values are told where they set others; each takes the place of NAME in a key.
        only: the fields that are wanted.
    """
    beside = comments(schema)
    for field in fields(schema):
        key = f"{path}.{field.name}" if path else field.name
        if only is not None and field.name not in only:
            continue
        if is_dataclass(field.type):
            yield from rows(field.type, key, said, names)
            continue
        said[key] = beside.get(field.name) or said.get(key, "")
        if not said[key]:
            raise ValueError(f"{key}: say beside it what it does")
        choices, what = explained(key, said[key])
        default = start(field)
        if choices and isinstance(default, str) and default not in (*choices, MISSING):
            raise ValueError(f"{key}: its default {default} is not among its choices {', '.join(choices)}")
        values = ([] if default == MISSING else [in_yaml(default)]) + list(of_files(key, names, default))
        yield f"| `{key}` | {allowed(field.type, choices)} | {'; '.join(values)} | {what.replace('|', chr(92) + '|')} |"


def may_change_results(key: str) -> bool:
    """Whether a setting belongs to what names a run."""
    value: Any = 0
    for part in reversed(key.split(".")):
        value = {part: value}
    return bool(essential(value))


def influence(lines: list[str]) -> str:
    """Whether the settings of these rows may change results."""
    keys = [line.split("`")[1] for line in lines]
    neutral = [key for key in keys if not may_change_results(key)]
    if len(neutral) == len(keys):
        return "Changes no results beyond rounding."
    return f"May change results{', but for ' if neutral else ''}{', '.join(f'`{key}`' for key in neutral)}."


def told(schema: Any) -> str:
    """What a schema says of itself."""
    return " ".join(inspect.cleandoc(schema.__doc__).split())


def section(title: str, text: list[str], lines: list[str]) -> str:
    """A heading, what is to be said of it, and its table."""
    head = ["| key | takes | default | what it does |", "|---|---|---|---|"] if lines else []
    return "\n\n".join([title, *filter(None, text), "\n".join([*head, *lines])]).strip()


def files(group: str) -> list[str]:
    """The files of a group that a user chooses one of."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def network(name: str) -> str:
    """The kind of network of a file of conf/model: that of the schema which it begins with, or of the file."""
    first = OmegaConf.load(CONF / "model" / f"{name}.yaml").defaults[0]
    schema = re.fullmatch(r"/(\w+)_schema@_here_", first)
    return schema[1] if schema else network(first)


def chosen(group: str, names: list[str]) -> str:
    """The choices of a group, in words."""
    return f"`{group}=`{', '.join(f'[`{name}`](../conf/{group}/{name}.yaml)' for name in names)}."


def tables() -> str:
    """What docs/settings.md says below its mark."""
    said: dict[str, str] = {}
    return "\n\n".join([*training(said), *evaluating(said)]) + "\n"


def training(said: dict[str, str]) -> Iterator[str]:
    """The sections of train.py."""
    taken = composed().hydra.runtime.choices
    for field in fields(Config):
        if field.name == "model":
            yield from networks(said, taken["model"])
        elif field.name == "evaluators":
            yield from evaluators(said)
        else:
            names = [taken[field.name]] if field.name in taken else []
            lines = list(rows(Config, "", said, names, only=(field.name,)))
            text = [influence(lines), chosen(field.name, files(field.name)) if len(files(field.name)) > 1 else ""]
            if is_dataclass(field.type):
                parts = [inner for inner in fields(field.type) if is_dataclass(inner.type)]
                inside = [f"`{field.name}.{inner.name}`: {told(inner.type)}" for inner in parts]
                text = [" ".join([told(field.type), *inside, text[0]]), text[1]]
            yield section(f"## {field.name}", text, lines)


def networks(said: dict[str, str], taken: str) -> Iterator[str]:
    """A table for every kind of network; those that extend another one's schema have what differs."""
    yield "## model"
    for kind, schema in NETWORKS.items():
        extended = [other for other, base in NETWORKS.items() if base is schema.__bases__[0]]
        only = inspect.get_annotations(schema) if extended else None
        lines = list(rows(schema, "model", said, [taken] if network(taken) == kind else [], only))
        text = f"{told(schema)} {influence(lines)}" + "".join(f" All other settings as of `{o}`." for o in extended)
        names = [name for name in files("model") if network(name) == kind]
        yield section(f"### {kind}", [text, chosen("model", names)], lines)


def evaluators(said: dict[str, str]) -> Iterator[str]:
    """A table for all evaluators of one schema."""
    yield f"## evaluators\n\nChanges no results. {chosen('evaluators', files('evaluators'))}"
    for schema in dict.fromkeys(EVALUATORS.values()):
        names = [name for name, each in EVALUATORS.items() if each is schema]
        lines = list(rows(schema, f"evaluators.{names[0] if len(names) == 1 else 'NAME'}", said, names))
        yield section(f"### {', '.join(names)}", [told(schema)], lines)


def evaluating(said: dict[str, str]) -> Iterator[str]:
    """The section of eval.py."""
    lines = list(rows(EvaluateConfig, "", said, [], only=("checkpoint", "eval", "run")))
    yield section("## eval.py", [told(EvaluateConfig)], lines)


def main() -> None:
    """Write them."""
    PAGE.write_text(PAGE.read_text().partition(MARK)[0] + MARK + "\n" + tables())


if __name__ == "__main__":
    main()

"""One sentence for what a user can get wrong on the command line."""

import dataclasses
import difflib
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from conf.schema import EVALUATORS, NETWORKS, Config, EvaluateConfig
from data.config import DataConfig
from data.errors import DataError
from gab.distributed import signals
from gab.errors import INTERRUPTED, LOST_PROCESS, STOPPED, USER_ERROR, LostProcess, Stopped, UserError

ROOT = Path(__file__).parent
FREE = ("model.kwargs", "train.sizes")  # whose keys are the user's
TRACEBACKS = "HYDRA_FULL_ERROR" in os.environ  # the user wants to see all


@contextmanager
def sentences() -> Iterator[None]:
    """Turn the errors that a user can cause into one sentence on stderr and an exit code of `gab.errors`.

    Hydra would catch them first and print its own; HYDRA_FULL_ERROR, unless set by the user, lets them through.
    """
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    except (DataError, UserError) as error:
        _exit(f"error: {error}")
    except LostProcess as error:
        _exit(f"error: {error}", LOST_PROCESS)
    except Stopped as stopped:
        _exit(signals.sentence(stopped), STOPPED)
    except KeyboardInterrupt:
        _exit("\nstopped; a training run goes on from its last checkpoint by the same command", INTERRUPTED)
    except (HydraException, OmegaConfBaseException) as error:  # some are ValueErrors too
        if TRACEBACKS:
            raise
        _exit(f"error: {explain(error)}")
    except (AssertionError, ValueError) as error:
        told = [sentence for text, sentence in _BARE.items() if text in str(error)]
        if not told:
            raise
        _exit(f"error: {told[0]}")
    finally:
        if before is None:
            os.environ.pop("HYDRA_FULL_ERROR", None)


_BARE = {  # what OmegaConf and Hydra raise without a class of their own
    # for KEY of SECTION.KEY=VALUE where the section is null
    "Unexpected type for root: NoneType": "a setting of data or model needs that section: add data=NAME, or model=timm "
    "model.name=NAME",
    "Config group override must be a string or a list": "null or a number is no file of conf/: choose a file by its "
    "name, as in model=vit_s16, or leave the setting out; evaluators=[] for none",
}


def _exit(sentence: str, code: int = USER_ERROR) -> NoReturn:
    print(sentence, file=sys.stderr, flush=True)
    raise SystemExit(code) from None


def explain(error: Exception) -> str:
    """A sentence for what Hydra or OmegaConf raised: which name or value is wrong, and what is near it."""
    text = str(error.__cause__ or error)
    for pattern, answer in _ANSWERS:
        if match := re.search(pattern, text):
            return answer(match)
    return " ".join(text.split())


_ELSEWHERE = {"learning_rate": "lr", "wd": "weight_decay", "num_workers": "workers", "dropout": "drop_rate"}
_SIZES = "train.sizes takes epochs with their pixels, and a plus: write '+train.sizes={0:128,100:192}'"


def _near(name: str, known: list[str]) -> str:
    """Closest names first; a short list is given whole."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"choose one of {', '.join(known)}" if known else "there is none to choose from"


def _group(match: re.Match[str]) -> str:
    group, _, name = match[1].partition("/")
    folder = ROOT / group
    known = sorted(p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.yaml"))
    return f"{group}={name} is unknown: {_near(name, known)}"


def _no_group(match: re.Match[str]) -> str:
    group, _, folder = match[1].partition("/")
    if folder:
        return f"{match[1]} is a folder: write {group}={folder}/NAME"
    return (
        f"{group} is not chosen in this command: leave it out; eval.py takes all but checkpoint, model, data, "
        "evaluators, eval and run from the checkpoint"
    )


def _key(match: re.Match[str]) -> str:
    return _unknown(match[1])


def _unknown(path: str) -> str:
    parent, _, name = path.rpartition(".")
    if parent == "model.kwargs":
        return f"{path} goes to timm as it is: write +{path}=VALUE, with a plus"
    if parent == "train.sizes":
        return _SIZES
    known = known_keys()
    siblings = [k.rpartition(".")[2] for k in known if k.rpartition(".")[0] == parent]
    settings = [k for k in known if k not in {other.rpartition(".")[0] for other in known}]  # not whole sections
    if path in known:
        owners = [network for network, schema in NETWORKS.items() if path in _keys_of(schema, "model")]
        if parent.partition(".")[0] == "model" and owners:
            return f"{path} is not a setting of this network: model.network {', '.join(owners)} have it"
        if evaluator := re.match(r"evaluators\.(\w+)", path):
            return f"{path} is of an evaluator that is not chosen: add it to the list, evaluators=[top1,{evaluator[1]}]"
        return f"{path} is not a setting here: another command has it"
    alike = [k for k in settings if k.rpartition(".")[2] == _ELSEWHERE.get(name, name)]
    alike.sort(key=lambda key: key.startswith("evaluators."))  # which is the least likely
    close = alike or difflib.get_close_matches(path, settings, n=3, cutoff=0.6)
    if close or not siblings:
        near = f"did you mean {' or '.join(close[:3])}?" if close else "docs/settings.md has those that exist"
        return f"{path} is not a setting: {near}"
    return f"{path} is not a setting{' of ' + parent if parent else ''}: {_near(name, siblings)}"


def _value(match: re.Match[str]) -> str:
    return f"{match['key']}={match['value']} is of the wrong type: give {_TYPES.get(match['type'], match['type'])}"


_TYPES = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false", "bool": "true or false"}

_ANSWERS: list[tuple[str, Callable[[re.Match[str]], str]]] = [
    (r"Could not (?:find|load) '([^']+)'", _group),
    (r"not in '[^']+'\s+full_key: (\S+)", _key),
    (r"Could not override '([^']*)'.\s*No match in the defaults list", _no_group),
    (r"is not in struct\s+full_key: (\S+)", _key),
    (r"Value '(?P<value>.*)' of type '\w+' could not be converted to (?P<type>\w+)\s+full_key: (?P<key>\S+)", _value),
    (r"Value '(?P<value>.*)' is not a valid (?P<type>\w+).*\s+full_key: (?P<key>\S+)", _value),
    (r"already at 'train\.sizes'|Cannot assign \w+ to Dict.*\s+full_key: train\.sizes", lambda m: _SIZES),
    (r"is not Optional\s+full_key: (\S+)", lambda m: f"{m[1]}=null: this setting cannot be without a value"),
    (r"is not a ListConfig, list or tuple.\s+full_key: (\S+)", lambda m: f"{m[1]} takes a list: write {m[1]}=[a,b]"),
    (r"is not a subclass of \w+. value: .*\s+full_key: (\S+)", lambda m: f"{m[1]} is a section: set {m[1]}.KEY=VALUE"),
    (
        r"(?:interpolation: Missing mandatory value: |Missing mandatory value: \S+\s+full_key: )(\S+)",
        lambda m: f"{m[1]} must be given: add {m[1]}=VALUE to the command",
    ),
    (r"parsing override '([^']*)'\s+missing EQUAL", lambda m: f"{m[1]!r} is not an override: write {m[1]}=VALUE"),
]


def refuse_unknown(container: dict[str, Any]) -> None:
    """Refuse keys that `+key=value` has added beside the schema.

    Raises:
        UserError: naming the first of them.
    """
    known = known_keys()

    def walk(node: Any, path: str) -> None:
        if path and path not in known:
            raise UserError(_unknown(path))
        if isinstance(node, dict) and path not in FREE:
            for key, value in node.items():
                walk(value, f"{path}.{key}" if path else key)

    walk(container, "")


def known_keys() -> list[str]:
    """Every setting of every section, as `section.key`, whatever network is chosen."""
    keys = _keys_of(Config, "") | _keys_of(EvaluateConfig, "") | _keys_of(DataConfig, "data")
    keys |= {f"evaluators.{name}" for name in EVALUATORS}
    keys = keys.union(*(_keys_of(schema, f"evaluators.{name}") for name, schema in EVALUATORS.items()))
    return sorted(keys.union(*(_keys_of(network, "model") for network in NETWORKS.values())))


def _keys_of(schema: Any, path: str) -> set[str]:
    """Every setting of a section, with `path` in front, and those of the sections in it."""
    keys: set[str] = set()
    for field in dataclasses.fields(schema):
        full = f"{path}.{field.name}" if path else field.name
        keys.add(full)
        if dataclasses.is_dataclass(field.type):
            keys |= _keys_of(field.type, full)
    return keys

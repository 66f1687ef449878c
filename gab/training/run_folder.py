"""`runs/<name>/`: one folder a run, found again by the same config, without a time stamp."""

import errno
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from yaml import YAMLError  # type: ignore[import-untyped]

from gab.errors import UserError

# What may not change results, beyond rounding: where things are, how the work is spread, who watches.
_NEUTRAL = (
    "run",
    "checkpoint",
    "tracking",
    "evaluators",
    "data.root",
    "data.stage",
    "data.write_if_missing",
    "model.grad_checkpointing",
)

# Weights: in the name of a run by where they are, from `run.dir` on; of a run, told apart by their fingerprints.
_WEIGHTS = ("init.source", "distillation.weights")


def essential(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a plain config that may change results, as flat `a.b.c: value`."""
    flat: dict[str, Any] = {}

    def walk(node: Any, path: str) -> None:
        if path in _NEUTRAL:
            return
        if isinstance(node, dict) and node:
            for key, value in node.items():
                walk(value, f"{path}.{key}" if path else key)
        else:
            flat[path] = node

    walk(config, "")
    return flat | {key: place(config, key) for key in _WEIGHTS if flat.get(key)}


def place(config: dict[str, Any], key: str) -> str | None:
    """Where the weights of `key` (`init.source`) are, seen from `run.dir` if they are in there; None without any."""
    section, _, name = key.partition(".")
    given, folder = config.get(section, {}).get(name), config.get("run", {}).get("dir")
    if given and folder and Path(given).is_relative_to(folder):
        return str(Path(given).relative_to(folder))
    return given


def fingerprint(config: dict[str, Any]) -> str:
    """Eight hexadecimal digits of everything in the config that may change results."""
    same = {key: float(value) if type(value) is int else value for key, value in essential(config).items()}  # 5 is 5.0
    text = json.dumps(same, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def run_name(config: dict[str, Any], variant: str) -> str:
    """The default name: variant, data set, seed and fingerprint."""
    return f"{variant}-{config['data']['name']}-s{config['seed']}-{fingerprint(config)}"


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """`key: old -> new` for everything that may change results and differs; of weights, whether there are any."""
    before, after = essential(old), essential(new)
    for key in _WEIGHTS:
        if before.get(key) and after.get(key):
            before[key] = after[key]
    keys = sorted(before.keys() | after.keys())
    return [f"{k}: {before.get(k, 'unset')} -> {after.get(k, 'unset')}" for k in keys if before.get(k) != after.get(k)]


def check_folder(folder: Path, config: dict[str, Any]) -> None:
    """Accept a folder that is not there yet, or that the same config began.

    Raises:
        UserError: another config began it, or its config cannot be read.
    """
    stored = folder / "config.yaml"
    changes = differences(read_config(stored), config) if stored.is_file() else []
    if changes:
        raise UserError(
            f"{folder} holds a run with another config ({'; '.join(changes)}): "
            "take another run.name, or delete that folder to start anew"
        )


def refuse_another(
    path: Path, content: dict[str, Any], *, container: dict[str, Any], data: dict[str, str], origins: dict[str, str]
) -> None:
    """Refuse the checkpoint `path` where it belongs to another config, other images or other weights.

    Test images that were added to the data set after it was written have no fingerprint in it, and are accepted.

    Args:
        content: of the checkpoint.
        container, data, origins: the config of this start, the fingerprint of its data set, and those of the weights
            that it begins with or is taught by.

    Raises:
        UserError: naming the differences.
    """
    if changes := differences(content["config"], container):
        raise UserError(f"{path} is of a run with another config ({'; '.join(changes)}): take another run.name")
    for what, before, now in (
        ("images", content["data"], data),
        ("weights that it began with or is taught by", content["origins"], origins),
    ):
        changes = [f"{key}: {before[key]} -> {now[key]}" for key in now if key in before and now[key] != before[key]]
        if changes:
            raise UserError(
                f"the {what} are not those that {path} was trained on (fingerprints {'; '.join(changes)}): put the old "
                "files back, or start anew under another run.name"
            )


def read_config(path: Path) -> dict[str, Any]:
    """The config that a run has stored at `path`.

    Raises:
        UserError: the file cannot be read, or holds none.
    """
    try:
        config = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, ValueError, YAMLError) as error:
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())}): restore it") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} is not the config of a run: restore it")
    return config  # type: ignore[return-value]


def make_folder(folder: Path, config: dict[str, Any], needed: int = 0) -> None:
    """Make the run's folder, with the config in it.

    Args:
        needed: bytes that the run will want there.

    Raises:
        UserError: it cannot be written to, or the disk is too small.
    """
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        held = {file.stat().st_ino: file.stat().st_size for file in (folder / "checkpoints").glob("*.pt")}
        free = shutil.disk_usage(folder).free + sum(held.values())  # new ones take the place of old ones
        if free < needed:
            raise OSError(errno.ENOSPC, f"{free / 1e9:.2f} GB free, {needed / 1e9:.2f} GB needed")
        aside = folder / ".config.yaml.part"  # a start that is killed here must not leave half a config
        OmegaConf.save(config, aside)
        aside.replace(folder / "config.yaml")
    except OSError as error:
        raise UserError(
            f"the run folder {folder} cannot be written ({error.strerror}): free space, or set run.dir to another place"
        ) from error

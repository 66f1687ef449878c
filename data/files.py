"""Where a data set's .beton files lie, what their names and sidecars say, and whether a file may be used."""

import gzip
import json
import re
import shlex
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from data import disk
from data.beton import read_header
from data.config import DataConfig
from data.errors import DataError
from data.splits import check_splits, splits
from data.transforms import check_transform

CONF = Path(__file__).parents[1] / "conf" / "data"  # a file for each data set that a command can name
REWRITE = "write the file again by scripts/prepare.py, with --force"
DRAWN_BY = ("split", "holdout", "split_seed")  # settings that draw an evaluation split from other images
FORMAT = 1  # of the sidecar, and of what the settings in it mean


@dataclass(frozen=True)
class Sidecar:
    """What a .beton file does not tell about itself; JSON beside it, named `<file>.json`."""

    split: str  # train | val | test
    reader: str
    settings: dict[str, Any]
    classes: list[str]
    class_counts: list[int]  # images of each class
    count: int
    reencoded: int  # images that do not have the coefficients of their original JPEG (all of them in raw files)
    skipped: list[str]  # unreadable images that were left out on request
    bytes: int
    sha256: str
    software: dict[str, str]
    format: int = FORMAT

    @property
    def labels(self) -> np.ndarray:
        """Labels of the samples, which lie in the order of their classes: int64 (count,)."""
        return np.repeat(np.arange(len(self.classes)), self.class_counts)


def train_beton(data: DataConfig) -> Path:
    """The file that holds the training images; its name carries the settings of `data.write`.

    With splits of one's own, it holds the images of the other splits too, or more of the training images than are used
    (`data.splits`). Raises DataError for impossible settings.
    """
    check_splits(data)
    write = data.write
    if write.mode not in ("jpg", "raw"):
        raise DataError(f"data.write.mode is {write.mode!r}; set it to jpg or raw.")
    if not 1 <= write.max_size <= 65535:
        raise DataError(f"data.write.max_size is {write.max_size}; set it to 1 to 65535 pixels.")
    if not 1 <= write.quality <= 100:
        raise DataError(f"data.write.quality is {write.quality}; set it to 1 to 100.")
    how = "raw" if write.mode == "raw" else f"q{write.quality}"
    whole = "pool" if data.split == "pooled" else "train"
    return _folder(data) / f"{whole}_max{write.max_size}_{how}.beton"


def eval_beton(data: DataConfig, split: str) -> Path:
    """The file of `split` (val | test) after the evaluation transform, which its name carries.

    It also carries how the split was drawn, if it was drawn. Raises DataError for impossible settings.
    """
    check_splits(data)
    check_transform(data.image_size, data.eval_crop, data.eval_interpolation)
    drawn = _drawn(data, split)
    seed = f"_seed{data.split_seed}" if drawn else ""
    how = "_pooled" if data.split == "pooled" else f"_holdout{data.holdout:g}" if drawn else ""
    name = "val" if data.holdout else split  # what is then the test set, is the validation set without a hold-out
    transform = f"{data.image_size}_{data.eval_crop:g}_{data.eval_interpolation}"
    return _folder(data) / f"{name}{how}{seed}_{transform}.beton"


def beton(data: DataConfig, split: str) -> Path:
    """The file of `split` (train | val | test)."""
    return train_beton(data) if split == "train" else eval_beton(data, split)


def settings(data: DataConfig, split: str) -> dict[str, Any]:
    """What decides about the stored images of `split`, as its sidecar records it."""
    if split == "train":
        pooled = {"split": data.split} if data.split == "pooled" else {}
        quality = {} if data.write.mode == "raw" else {"quality": data.write.quality}
        return {"mode": data.write.mode, "max_size": data.write.max_size} | quality | pooled
    transform = {"size": data.image_size, "crop": data.eval_crop, "interpolation": data.eval_interpolation}
    return transform | _drawn(data, split)


def _drawn(data: DataConfig, split: str) -> dict[str, Any]:
    """The settings by which an evaluation split was drawn from another, if it was."""
    if data.split == "pooled":
        return {"split": data.split, "split_seed": data.split_seed}
    if data.holdout and split == "val":
        return {"holdout": data.holdout, "split_seed": data.split_seed}
    return {}


def write_command(data: DataConfig, split: str) -> str:
    """The command that makes the file of `split`, and those of the other splits if they are missing too.

    It names the settings that differ from those of the data set's config file, or all where files with others lie.
    """
    every = splits(data)
    others_missing = not any(is_complete(beton(data, other)) for other in every if other != split)
    wanted = every if others_missing else (split,)
    file = own_file(data)
    given = usual(file)
    keys = {"size": "data.image_size", "crop": "data.eval_crop", "interpolation": "data.eval_interpolation"}
    parts = [file, "--root", data.root]
    for key in ("name", "reader", *DRAWN_BY):
        if getattr(data, key) != getattr(given, key):
            parts.append(f"data.{key}={_quoted(str(getattr(data, key)))}")
    for one in wanted:
        for key, value in settings(data, one).items():
            part = f"{keys.get(key, f'data.write.{key}')}={value}"
            told = key in DRAWN_BY or part in parts
            if not told and (value != settings(given, one).get(key) or _other_files(data, one)):
                parts.append(part)
    choice = ["--split", split] if len(wanted) == 1 else []
    return shlex.join(["python", "scripts/prepare.py", *parts, *choice])


def own_file(data: DataConfig) -> str:
    """The file of conf/data that goes by the name of the data set; `folder` where there is none."""
    return data.name if (CONF / f"{data.name}.yaml").is_file() else "folder"


def usual(file: str) -> DataConfig:
    """What `data=file` on a command line sets, but for the root, which depends on the environment."""
    content = OmegaConf.to_container(OmegaConf.load(CONF / f"{file}.yaml"))
    assert isinstance(content, dict)
    own = {key: value for key, value in content.items() if key != "defaults"} | {"root": ""}
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DataConfig), own))  # type: ignore[return-value]


def _quoted(value: str) -> str:
    """`value` for the right side of an override: what is not plain, Hydra wants in quotes."""
    return value if re.fullmatch(r"[\w./~+-]+", value) else "'" + value.replace("'", "\\'") + "'"


def is_complete(path: Path) -> bool:
    """Whether the .beton file `path` is there, with all that goes with it."""
    return all(place.is_file() for place in (path, sidecar_path(path), names_path(path)))


def sidecar_path(path: Path) -> Path:
    """Where the sidecar of the .beton file `path` lies."""
    return path.with_name(path.name + ".json")


def names_path(path: Path) -> Path:
    """Where the names of the images in the .beton file `path` lie."""
    return path.with_name(path.name + ".names.json.gz")


def save_sidecar(path: Path, sidecar: Sidecar) -> None:
    """Write the sidecar of the .beton file `path`."""
    disk.save(sidecar_path(path), (json.dumps(asdict(sidecar), indent=1) + "\n").encode())


def load_sidecar(path: Path, remedy: str = REWRITE) -> Sidecar:
    """The sidecar of the .beton file `path`; raises DataError if it is missing, not ours, or of another format."""
    place = sidecar_path(path)
    try:
        found = json.loads(place.read_bytes())
        version = found["format"]
        sidecar = Sidecar(**found) if version == FORMAT else None
    except FileNotFoundError:
        raise DataError(f"{path} has no sidecar {place.name}; {remedy}") from None
    except OSError as error:
        raise DataError(f"{place} cannot be read ({error.strerror}); check its permissions, or {remedy}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{place} is not a sidecar of this project ({error}); {remedy}") from error
    if sidecar is None:
        raise DataError(f"{place} has format {version}, this version reads {FORMAT}; {remedy}")
    return sidecar


def save_names(path: Path, names: list[str]) -> None:
    """Write the names of the images in the .beton file `path`; apart from the sidecar, since ImageNet has 40 MB."""
    disk.save(names_path(path), gzip.compress(json.dumps(names, indent=0).encode(), mtime=0))


def image_names(path: Path) -> list[str]:
    """The names of the images in the .beton file `path`, in its order; raises DataError if they are not there."""
    try:
        return json.loads(gzip.decompress(names_path(path).read_bytes()))
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{names_path(path)} cannot be read ({error}); {REWRITE}") from error


def check(path: Path, data: DataConfig, split: str) -> Sidecar:
    """The sidecar of `path`, after a quick check that the file is whole and made by the settings of `data`.

    `path` is the file of `split`, where it was made or a staged copy. Raises DataError naming what is wrong: missing,
    cut short, not a .beton file, of another format or of other settings. (Contents: see `data.stage`, which hashes.)
    """
    again = f"make it: {write_command(data, split)}"
    if not path.is_file():
        others = _other_files(data, split)
        hint = f" (there is {', '.join(others)}, made with other settings)" if others else ""
        raise DataError(f"{path} does not exist{hint}; {again}")
    try:
        header, size = read_header(path), path.stat().st_size
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}); check its permissions, or {again} --force"
        ) from error
    if header is None:
        raise DataError(f"{path} is not a .beton file with images and labels; {again} --force")
    sidecar = load_sidecar(path, f"{again} --force")
    if size != sidecar.bytes or header.count != sidecar.count:
        raise DataError(
            f"{path} has {size:,} bytes and {header.count:,} images where its sidecar says {sidecar.bytes:,} and "
            f"{sidecar.count:,}: it was cut short or replaced; {again} --force"
        )
    wanted = settings(data, split)
    if sidecar.settings != wanted:
        raise DataError(f"{path} was written with {sidecar.settings}, the config says {wanted}; {again} --force")
    if sidecar.reader != data.reader:
        raise DataError(f"{path} was written by the reader {sidecar.reader}, not {data.reader}; {again} --force")
    if split == "train" and sidecar.skipped and (data.split == "pooled" or data.holdout or data.fraction < 1):
        raise DataError(
            f"{path} lacks {len(sidecar.skipped)} images that could not be read, so that no part of it can be drawn by "
            f"position; fix them, or remove them from the data set, and {again} --force"
        )
    return sidecar


def _folder(data: DataConfig) -> Path:
    return Path(data.root).expanduser() / "beton"


def _other_files(data: DataConfig, split: str) -> list[str]:
    """Names of the files of `split` that were made with other settings."""
    kind = beton(data, split).name.split("_")[0]
    mine = {beton(data, one) for one in splits(data)}
    return sorted(path.name for path in _folder(data).glob(f"{kind}_*.beton") if path not in mine)

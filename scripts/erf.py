"""The receptive-field studies of the GAB paper, each as one command:

    erf.py table resnet18 vit_small_patch16_224 runs/A/checkpoints/last.pt --data imagenet    fits and areas of networks
    erf.py positions runs/A/checkpoints/last.pt    trained, and with its positions or relative biases reset
    erf.py training runs/A/checkpoints/last.pt     the same network before and after training

A network is a checkpoint of a run, or a name of timm with its published weights. Images are each checkpoint's own, or
of `--data NAME` (a file of conf/data), with settings such as data.root=FOLDER, each shown as its network is used to.
OUT gets erf.csv, erf.md, figures/erf.png and .pdf, and state/, from which the same command goes on.
"""

import argparse
import copy
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that the script also runs where the project is not installed

import timm
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn

import data
from conf.errors import refuse_unknown, sentences
from conf.networks import TRANSFORM, data_of, published_transform, restore, transform_of, without_weights
from conf.schema import data_for, init_from, model_from, plain, typed
from data.config import DataConfig
from gab.augment import normalize
from gab.config import TimmConfig
from gab.distributed.processes import choose_device
from gab.errors import UserError
from gab.evaluators import erf_figures
from gab.evaluators.csv_file import write_csv
from gab.evaluators.erf import ReceptiveField, effective_receptive_field
from gab.evaluators.erf_table import markdown, mixes, rows
from gab.evaluators.readouts import READOUTS
from gab.models.build import build, check_name
from gab.tracking.figure_files import save
from gab.training import checkpoint
from gab.training.digest import weights_digest
from gab.training.init_from import PARTS, start_from

SHOWN = [f"data.{key}" for key in ("image_size", *TRANSFORM)]  # settings of how images are shown
COLUMNS = {
    "network": "network", "measured": "measured", "images": "images", "r_squared": "R²", "sigma_x": "σx (px)",
    "sigma_y": "σy (px)", "area_20": "20 % (% of pixels)", "area_30": "30 %", "area_50": "50 %", "area_99": "99 %",
    "own_patch": "in the patch (%)", "relative_error": "relative error",
}  # fmt: skip


@dataclass(frozen=True)
class Network:
    """A network as it is and as it started, and the images that it is used to."""

    name: str
    model: nn.Module
    fresh: nn.Module
    images: DataConfig


def main(arguments: list[str] | None = None) -> None:
    """The command line; what a user can get wrong ends in one sentence."""
    given = parse(arguments)
    with sentences():
        study(given)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=("table", "positions", "training"))
    parser.add_argument("networks", nargs="+", help="checkpoints, names of timm, and settings as data.root=FOLDER")
    parser.add_argument("--data", help="a file of conf/data; without it, the data set of the checkpoint")
    parser.add_argument("--split", default="val", choices=("val", "train", "test"))
    parser.add_argument("--images", type=int, default=64, help="evenly spread over the split (default: %(default)s)")
    parser.add_argument("--until", type=float, help="stop when the relative standard error is below this")
    parser.add_argument(
        "--target", type=int, nargs=2, metavar=("ROW", "COLUMN"), help="default: the patch in the middle"
    )
    parser.add_argument("--layer", help="a module's name or a block's number; default: the last features")
    parser.add_argument("--readout", choices=READOUTS, help="default: mean, the paper's; of `training` pre_norm")
    parser.add_argument("--part", choices=("position", "rel_pos"), help="of `positions`; default: those that there are")
    parser.add_argument("--seed", type=int, default=0, help="of the start of timm's networks")
    parser.add_argument("--batch-size", type=int, default=16, help="images of one backward pass; by rounding only")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="(default: runs/erf/STUDY)")
    given = parser.parse_intermixed_args(arguments)
    given.out = given.out or Path("runs/erf", given.study)
    return given


def study(given: argparse.Namespace) -> None:
    """Measure every network of the study, and write what was found."""
    if given.images < 1 or given.batch_size < 1:
        raise UserError("--images and --batch-size take 1 or more")
    settings = [word for word in given.networks if "=" in word]
    names = labels([word for word in given.networks if "=" not in word])
    if (idle := [word for word in settings if word.partition("=")[0] in SHOWN]) and all(map(is_checkpoint, names)):
        raise UserError(f"{idle[0]} changes nothing: a checkpoint is shown images as in its training; leave it out")
    device = torch.device(choose_device(given.device))
    fields: dict[str, ReceptiveField] = {}
    for name, label in names.items():
        for variant, model, images in arms(given, network(name, label, given, settings)):
            fields[variant] = measure(given, variant, model.to(device), images, device)
    if not fields:
        raise UserError("no network is given: name checkpoints or networks of timm")
    write(given.out, fields)


def labels(names: list[str]) -> dict[str, str]:
    """What each network is called: a checkpoint by its run and, where several are of one name, by more of its path."""
    paths = {name: Path(name).absolute() for name in names if is_checkpoint(name)}
    parts = {name: (*path.parts[1:-2], path.stem) for name, path in paths.items()}  # without checkpoints/
    called = {name: parts[name][-2:][0] if name in parts else name for name in names}
    for length in range(2, max(map(len, parts.values()), default=0) + 1):
        repeated = [name for name in parts if list(called.values()).count(called[name]) > 1]
        called |= {name: "/".join(parts[name][-length:]) for name in repeated}
    return called


def is_checkpoint(name: str) -> bool:
    """Whether it is a file of a run, and no network of timm."""
    return Path(name).suffix == ".pt"


def network(name: str, label: str, given: argparse.Namespace, settings: list[str]) -> Network:
    """The network of a checkpoint or of timm, to be called `label`.

    Raises:
        UserError: there is no such network, or nobody says on which images.
    """
    if is_checkpoint(name):
        return of_checkpoint(Path(name), label, given, settings)
    images = chosen_data(given.data, settings)
    if images is None:
        raise UserError(f"say on which images {name} is looked at: add --data NAME (a file of conf/data)")
    published = timm.get_pretrained_cfg(name)
    if published is not None and not any(word.startswith("data.image_size=") for word in settings):
        images = replace(images, image_size=published.input_size[-1])
    return of_timm(name, images, given.seed)


def of_checkpoint(path: Path, label: str, given: argparse.Namespace, settings: list[str]) -> Network:
    """Of a run; other images than its own are shown as its own were."""
    stored = checkpoint.load(path)
    own = data_of(stored)
    images = chosen_data(given.data, settings, own)
    assert images is not None
    images = replace(images, image_size=own.image_size, **transform_of(own))
    fresh = started(stored, path) if given.study == "training" else drawn(stored)
    return Network(label, restore(stored, "raw", own.image_size), fresh, images)


def drawn(stored: dict[str, Any]) -> nn.Module:
    """The network of a checkpoint with start values of its seed, at the size of its data set."""
    config, size = without_weights(model_from(stored["config"]["model"])), stored["config"]["data"]["image_size"]
    return build(config, image_size=size, num_classes=len(stored["classes"]), seed=stored["config"]["seed"])


def started(stored: dict[str, Any], path: Path) -> nn.Module:
    """The network of the checkpoint `path` as its training began, at the size of its data set.

    Raises:
        UserError: it began with weights that are gone, or are others now.
    """
    config, classes = stored["config"], stored["classes"]
    model, init, size = model_from(config["model"]), init_from(config["init"]), config["data"]["image_size"]
    if init.source is None:
        return build(model, image_size=size, num_classes=len(classes), seed=config["seed"])
    try:
        fresh, start = start_from(init, model, image_size=size, classes=classes, seed=config["seed"])
    except UserError as error:
        raise UserError(f"{path} cannot be shown as it began, with weights of {init.source}: {error}") from error
    if start.digest != stored["origins"]["init"]:
        raise UserError(
            f"{init.source} holds other weights than {path} began with (fingerprints {start.digest} and "
            f"{stored['origins']['init']}): put the old file back, or take another study than training"
        )
    return fresh


def of_timm(name: str, images: DataConfig, seed: int) -> Network:
    """Published, and started by `seed`."""
    check_name(name)
    config, size = TimmConfig(base=name, name=name, pretrained=True), images.image_size
    model = build(config, image_size=size, num_classes=1000, seed=seed)
    fresh = build(without_weights(config), image_size=size, num_classes=1000, seed=seed)
    return Network(name, model, fresh, replace(images, **published_transform(model)))


def chosen_data(name: str | None, settings: list[str], own: DataConfig | None = None) -> DataConfig | None:
    """`--data NAME`, or the data set of a checkpoint, with the settings of the command line; None without either."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("eval", [*([f"data={name}"] if name else []), *settings])
    cfg.data = data_for(cfg.data, own)
    refuse_unknown(plain(cfg))
    images: DataConfig | None = typed(cfg).data
    if images is None or images == own:
        return images
    return replace(images, loader="torch")  # what is stored for FFCV is of one size and crop


def arms(given: argparse.Namespace, of: Network) -> Iterator[tuple[str, nn.Module, DataConfig]]:
    """The networks that a study compares, by name."""
    if given.study == "training":
        yield f"{of.name}, before training", of.fresh, of.images
        yield f"{of.name}, after training", of.model, of.images
        return
    yield of.name, of.model, of.images
    if given.study == "positions":
        yield from ((name, model, of.images) for name, model in with_parts_reset(given, of))


def with_parts_reset(given: argparse.Namespace, of: Network) -> Iterator[tuple[str, nn.Module]]:
    """The trained network with its positions, or its relative biases, as they started; all else stays."""
    start = dict(of.fresh.named_parameters())
    parts = [given.part] if given.part else ["position", "rel_pos"]
    found = {
        part: [name for name, one in of.model.named_parameters() if re.search(PARTS[part], name) and one.requires_grad]
        for part in parts
    }
    if not any(found.values()):
        raise UserError(f"{of.name} has no {' and no '.join(parts)} that was learned: give another network or --part")
    for part, names in found.items():
        if names:
            model = copy.deepcopy(of.model)
            with torch.no_grad():
                for name in names:
                    model.get_parameter(name).copy_(start[name])
            yield f"{of.name}, {part} reset", model


def measure(
    given: argparse.Namespace, name: str, model: nn.Module, images: DataConfig, device: torch.device
) -> ReceptiveField:
    """The field of one network; what was measured is kept after every batch, and taken up again."""
    path = given.out / "state" / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', name)}.pt"
    shown = ", ".join(f"{key} {value}" for key, value in transform_of(images).items())
    looked_at = f"{given.images} of {images.name} in {images.root}, {given.split}, {shown}"
    of = {"weights": weights_digest(model), "images": looked_at}
    state = kept(path) if path.is_file() else None
    if state is not None and state.get("of") != of:
        raise UserError(f"{path} is of another network or of other images: choose another --out, or remove it")
    layer = int(given.layer) if given.layer and re.fullmatch(r"-?\d+", given.layer) else given.layer
    path.parent.mkdir(parents=True, exist_ok=True)
    field = effective_receptive_field(
        model,
        inputs(images, given, device),
        target=given.target or 1,
        layer=layer,
        readout=given.readout or ("pre_norm" if given.study == "training" else "mean"),
        until=given.until,
        state=state,
        after=lambda field: keep(path, {**field.state_dict(), "of": of}),
    )
    enough = f", relative error {100 * field.relative_error:.1f} %" if field.count > 1 else ""
    print(f"{name}: {field.measured}, {field.count} images{enough}", flush=True)
    for note in field.notes:
        print(f"note: {note}")
    return field


def kept(path: Path) -> dict[str, Any]:
    """What `keep` wrote; raises UserError where it cannot be read."""
    try:
        return torch.load(path, weights_only=True)
    except Exception as error:  # of many classes for a file that is no state
        raise UserError(
            f"{path} cannot be read: remove it, and the network is measured from its first image"
        ) from error


def keep(path: Path, state: dict[str, Any]) -> None:
    """The file as a whole, or as it was."""
    aside = path.with_suffix(".part")
    torch.save(state, aside)
    aside.replace(path)


def inputs(images: DataConfig, given: argparse.Namespace, device: torch.device) -> Iterator[Tensor]:
    """Batches of the network's input."""
    data.prepare(images)
    batches = data.open_eval(images, batch_size=given.batch_size, split=given.split, limit=given.images)
    mean, std = (torch.tensor(value, device=device) for value in (images.mean, images.std))
    try:
        for batch in batches:
            yield normalize(batch.images.to(device), mean, std)
    finally:
        batches.close()


def write(out: Path, fields: dict[str, ReceptiveField]) -> None:
    """Tables and figures, and the table on the screen."""
    table = [{"network": name, **row} for name, field in fields.items() for row in rows(field)]
    out.mkdir(parents=True, exist_ok=True)
    write_csv(out / "erf.csv", table)
    text = markdown(table, COLUMNS)
    (out / "erf.md").write_text(text)
    files = save(erf_figures.compare_fields(fields), out / "figures" / "erf")
    print(f"\n{text}\n{out / 'erf.csv'}, {out / 'erf.md'}, {', '.join(map(str, files))}")
    if mixes(table):
        print("Take --readout pre_norm to measure the same in all of them.")


if __name__ == "__main__":
    main()

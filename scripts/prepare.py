"""From the published archives of a data set to .beton files: `python scripts/prepare.py imagenet --root FOLDER`."""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that the script also runs where the project is not installed

from hydra import compose, initialize_config_dir

from conf.errors import refuse_unknown, sentences
from conf.schema import plain, typed
from data import files, readers
from data.config import DataConfig
from data.errors import root_is
from data.splits import require_split, splits
from data.writer import write_split

SKIP_HELP = (
    "leave out images that cannot be read: the file has fewer samples than the folder, so its order and sample indices "
    "are not those of data.loader=torch, which reads the originals and stops at the first such image"
)


def main(arguments: list[str] | None = None) -> None:
    """Do what the command line asks for; what a user can get wrong ends in a sentence and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="the data set, a file of conf/data: it says what to put into its folder")
    parser.add_argument("overrides", nargs="*", help="settings, as of train.py: data.image_size=384 ...")
    parser.add_argument("--root", help="the data set's folder; default: $GAB_DATA/NAME, or datasets/NAME")
    parser.add_argument("--download", action="store_true", help="fetch and unpack what is not there yet")
    parser.add_argument("--split", choices=["train", "val", "test", "all"], default="all")
    parser.add_argument("--workers", type=int, help="threads; default: one per core that this process may use")
    parser.add_argument("--skip-unreadable", action="store_true", help=SKIP_HELP)
    parser.add_argument("--force", action="store_true", help="write again what is already there")
    given = parser.parse_intermixed_args(arguments)
    if "=" in given.name:
        parser.error(f"the name of a data set comes first, as in `prepare.py imagenet`, and not {given.name}")
    with sentences(), root_is("--root"):
        data = data_config(given.name, given.root, given.overrides)
        if given.download:
            readers.download(data)
        if given.split != "all":
            require_split(data, given.split)
        for split in splits(data) if given.split == "all" else [given.split]:
            path = write_split(data, split, given.workers, given.skip_unreadable, given.force)
            print(summary(path), flush=True)


def data_config(name: str, root: str | None, overrides: list[str]) -> DataConfig:
    """The data section of the training config for `data=name`."""
    with initialize_config_dir(str(ROOT / "conf"), version_base=None):
        config = compose("train", [f"data={name}", *overrides])
    if root is not None:
        config.data.root = root
    refuse_unknown(plain(config))
    return typed(config.data)


def summary(path: Path) -> str:
    """One line about a written file."""
    sidecar = files.load_sidecar(path)
    original = sidecar.count - sidecar.reencoded
    kept = f", {original:,} with their original bytes" if original else ""
    left_out = f", {len(sidecar.skipped):,} unreadable left out" if sidecar.skipped else ""
    size = f"{sidecar.bytes / 1e9:.2f} GB"
    return f"{path}: {sidecar.count:,} images of {len(sidecar.classes):,} classes, {size}{kept}{left_out}"


if __name__ == "__main__":
    main()

"""Write a data set as .beton files: `python scripts/write_beton.py data=imagenet data.root=FOLDER`."""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that the script also runs where the project is not installed

from hydra import compose, initialize_config_dir  # noqa: E402
from hydra.errors import HydraException  # noqa: E402
from omegaconf.errors import OmegaConfBaseException  # noqa: E402

from conf.schema import typed  # noqa: E402
from data import files  # noqa: E402
from data.config import DataConfig  # noqa: E402
from data.errors import DataError  # noqa: E402
from data.writer import write_split  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 1 after a sentence on standard error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("overrides", nargs="*", help="settings, as of train.py: data=NAME data.root=FOLDER ...")
    parser.add_argument("--split", choices=["train", "val", "all"], default="all")
    parser.add_argument("--workers", type=int, help="threads; default: one per core that this process may use")
    parser.add_argument("--skip-unreadable", action="store_true", help="leave out images that cannot be read")
    parser.add_argument("--force", action="store_true", help="write again what is already there")
    given = parser.parse_intermixed_args(arguments)
    try:
        data = data_config(given.overrides)
        for split in ["train", "val"] if given.split == "all" else [given.split]:
            path = write_split(data, split, given.workers, given.skip_unreadable, given.force)
            print(summary(path))
    except (DataError, HydraException, OmegaConfBaseException) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def data_config(overrides: list[str]) -> DataConfig:
    """The data section of the training config."""
    with initialize_config_dir(str(ROOT / "conf"), version_base=None):
        return typed(compose("train", overrides).data)


def summary(path: Path) -> str:
    """One line about a written file."""
    sidecar = files.load_sidecar(path)
    left_out = f", {len(sidecar.skipped)} unreadable left out" if sidecar.skipped else ""
    return (
        f"{path}: {sidecar.count:,} images of {len(sidecar.classes):,} classes, {sidecar.bytes / 1e9:.2f} GB, "
        f"{sidecar.reencoded:,} not as their original bytes{left_out}"
    )


if __name__ == "__main__":
    sys.exit(main())

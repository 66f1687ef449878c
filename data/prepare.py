"""Small data sets are written at first use (`data.write_if_missing`)."""

from data import files
from data.batches import check_loader
from data.config import DataConfig
from data.splits import splits
from data.writer import write_split


def prepare(data: DataConfig) -> None:
    """Write the .beton files that this run will read and that are not there yet, or not with all that goes with them.

    Call it in one process of the run; runs that start at once wait for the one that writes. Raises DataError.
    """
    check_loader(data)
    if data.loader == "torch" or not data.write_if_missing:
        return
    for split in splits(data) if data.eval_source == "beton" else ("train",):
        if not files.is_complete(files.beton(data, split)):
            write_split(data, split)

"""ImageNet-1k: the original archives, read where they are, or a folder per class."""

import tarfile
import tempfile
from pathlib import Path

import numpy as np
from torchvision.datasets.imagenet import ARCHIVE_META, load_meta_file, parse_devkit_archive
from tqdm import tqdm

from data.archive_index import Place, kept_places
from data.errors import DataError
from data.readers import folder
from data.readers.base import EncodedSource, Source


class TarSource(EncodedSource):
    """Images at known places of one uncompressed archive."""

    def __init__(self, archive: Path, classes: list[str], places: list[Place]):
        places = sorted(places)
        positions = {name: i for i, name in enumerate(classes)}
        names = [name for name, _, _ in places]
        labels = np.array([positions[name.split("/")[0]] for name in names], np.int64)
        super().__init__(classes, labels, names)
        self.archive = archive
        self.offsets = np.array([offset for _, offset, _ in places], np.int64)
        self.sizes = np.array([size for _, _, size in places], np.int64)

    def read(self, i: int) -> bytes:
        with self.archive.open("rb") as file:
            file.seek(self.offsets[i])
            return file.read(self.sizes[i])


def open_split(root: Path, split: str) -> Source:
    """The images of `split` below `root`, as train/ or val/ with a folder per class, or else from the archives.

    Either way the classes are the sorted WordNet ids, and names and order are the same. Where the images lie in an
    archive is kept beside the .beton files. Raises DataError if neither is there, or an archive is damaged.
    """
    if folder.has_split(root, split):
        return folder.open_split(root, split)
    archive = _archive(root, split)
    index = root / "beton" / f"{archive.name}.index.npz"
    try:
        if split == "train":
            places = kept_places(index, [archive], lambda: train_places(archive))
        else:
            devkit = _archive(root, "devkit")
            places = kept_places(index, [archive, devkit], lambda: val_places(archive, val_classes(devkit)))
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"The archive {archive} is damaged ({error}); fetch it again.") from error
    classes = sorted({name.split("/")[0] for name, _, _ in places})
    return TarSource(archive, classes, places)


def train_places(archive: Path) -> list[Place]:
    """The images in the training archive, which holds one archive per class, named by its WordNet id."""
    places = []
    with tarfile.open(archive, "r:") as outer:
        for member in tqdm(outer.getmembers(), desc="indexing", unit="classes", disable=None):
            inner_file = outer.extractfile(member)
            if inner_file is None:
                continue
            with tarfile.open(fileobj=inner_file, mode="r:") as inner:
                places += [
                    (f"{Path(member.name).stem}/{image.name}", member.offset_data + image.offset_data, image.size)
                    for image in inner
                    if image.isfile()
                ]
    return places


def val_places(archive: Path, classes: list[str]) -> list[Place]:
    """The images in the validation archive; `classes` are their WordNet ids, in the order of the file names."""
    with tarfile.open(archive, "r:") as tar:
        images = sorted((Path(image.name).name, image.offset_data, image.size) for image in tar if image.isfile())
    if len(images) != len(classes):
        raise DataError(f"{archive} has {len(images)} images, the devkit labels {len(classes)}; fetch it again.")
    return [(f"{wnid}/{name}", offset, size) for wnid, (name, offset, size) in zip(classes, images, strict=True)]


def val_classes(devkit: Path) -> list[str]:
    """The WordNet id of each validation image, from the devkit; torchvision parses it, writing to a scratch folder."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            parse_devkit_archive(scratch, str(devkit.resolve()))
        except RuntimeError as error:
            raise DataError(f"The archive {devkit} is damaged (its MD5 is wrong); fetch it again.") from error
        return load_meta_file(scratch)[1]


def _archive(root: Path, part: str) -> Path:
    """The archive that holds `part` (train, val or devkit)."""
    path = root / ARCHIVE_META[part][0]
    if not path.is_file():
        raise DataError(
            f"{root} has neither {path.name} nor the folders train/ and val/; fetch the archives from image-net.org, "
            "put them there, or set data.root to where they are."
        )
    return path

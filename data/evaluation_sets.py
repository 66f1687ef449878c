"""The sets that judge networks of ImageNet's classes beside its own validation images, as they are published."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data import files
from data.batches import EvalBatches, open_eval
from data.config import DataConfig
from data.errors import DataError, root_is
from data.readers.base import Source
from data.readers.folder import FolderSource, list_classes, listed
from data.splits import open_source
from data.transforms import check_transform


@dataclass(frozen=True)
class Published:
    """A set as its authors describe it."""

    title: str
    images: int  # of each part, where it has parts
    numbered: bool = False  # a folder is named by the number of its class, not by its WordNet id


SETS = {
    "real": Published("ImageNet's validation set", 50_000),
    "v2": Published("ImageNet-V2", 10_000, numbered=True),
    "a": Published("ImageNet-A", 7_500),
    "r": Published("ImageNet-R", 30_000),
    "sketch": Published("ImageNet-Sketch", 50_889),
    "c": Published("ImageNet-C", 50_000),
}


@dataclass(frozen=True)
class EvaluationSet:
    """One of `SETS` on this machine.

    Attributes:
        data: the evaluation transform, and the loader.
        classes: WordNet ids in the order of the labels.
        partial: take what is there of it.
    """

    name: str
    root: Path
    data: DataConfig
    classes: Sequence[str]
    partial: bool = False

    def open(
        self, part: str = "", *, batch_size: int, rank: int = 0, processes: int = 1, workers: int = 2, pin: bool = False
    ) -> EvalBatches:
        """Batches of the images in the folder `part` of the set, as `data.open_eval` gives them of a split.

        ImageNet's own images come from its .beton file where there is one, all others from the original files. Raises
        DataError where the folder is missing, or does not hold what the set should.
        """
        from data.torch_loader import SourceEval

        if self.name == "real":
            with root_is(self.key("root")):
                batches = open_eval(
                    self.imagenet(), batch_size=batch_size, rank=rank, processes=processes, workers=workers, pin=pin
                )
            self.require_all(len(batches.names), self.root)
            return batches
        check_transform(self.data.image_size, self.data.eval_crop, self.data.eval_interpolation)
        decoder = SourceEval(self.source(part), self.data, batch_size, workers, pin)
        return EvalBatches(decoder, batch_size, rank, processes, None)

    def imagenet(self) -> DataConfig:
        """ImageNet in the root, from its .beton file where there is one."""
        data = replace(
            self.data, name="imagenet", reader="imagenet", root=str(self.root), split="official", holdout=0.0
        )
        written = data.loader != "torch" and files.is_complete(files.beton(data, "val"))
        return data if written else replace(data, eval_source="original")

    def check(self, parts: Sequence[str] = ()) -> None:
        """Raise DataError where `open` would; of a set with `parts`, only look whether their folders are there."""
        for part in parts:
            self.folder(part)
        if self.name == "real":
            with root_is(self.key("root")):
                images = open_source(self.imagenet(), "val")
            self.require_all(len(images), self.root)
        elif not parts:
            self.source("")

    def source(self, part: str) -> Source:
        """The images of a folder per class; labels are positions in `classes`, whatever the order of the names."""
        folder = self.folder(part)
        numbered = SETS[self.name].numbered
        expected = [str(number) for number in range(len(self.classes))] if numbered else list(self.classes)
        try:
            found = set(list_classes(folder))
            if unknown := found.difference(expected):
                raise DataError(
                    f"{folder} has {listed(sorted(unknown))}, which {self.title} does not have; set {self.key('root')} "
                    "to the folder of that set alone."
                )
            present = [name for name in expected if name in found]
            if len(present) < len(expected) and not self.partial:
                missing = [name for name in expected if name not in found]
                raise DataError(f"{folder} lacks {listed(missing)} of {self.title}; {self.remedy}")
            source = FolderSource(folder, present)
        except OSError as error:
            raise DataError(
                f"{error.filename or folder} cannot be read ({error.strerror}); check its permissions, or set "
                f"{self.key('root')} to a copy."
            ) from error
        labels = np.array([number for number, name in enumerate(expected) if name in found])
        source.classes, source.labels = list(self.classes), labels[source.labels]
        self.require_all(len(source), folder)
        return source

    def folder(self, part: str) -> Path:
        """The folder `part`; raises DataError if there is none."""
        folder = self.root / part
        if not folder.is_dir():
            raise DataError(
                f"There is no folder {folder} with images of {self.title}; unpack the set there "
                f"(conf/evaluators/{self.name}.yaml says where it comes from), or set {self.key('root')}."
            )
        return folder

    def require_all(self, count: int, where: Path) -> None:
        """Raise DataError unless `count` is the number of images that the set has, or fewer are allowed."""
        images = SETS[self.name].images
        if count != images and not (self.partial and count < images):
            raise DataError(f"{where} holds {count:,} images where {self.title} has {images:,}; {self.remedy}")

    def key(self, setting: str) -> str:
        return f"evaluators.{self.name}.{setting}"

    @property
    def title(self) -> str:
        return SETS[self.name].title

    @property
    def remedy(self) -> str:
        return f"unpack it again, or set {self.key('partial')}=true to score what is there."

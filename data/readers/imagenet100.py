"""ImageNet-100: 100 classes of ImageNet, as a set of its own or taken from ImageNet's archives or folders."""

from pathlib import Path

import numpy as np

from data.errors import DataError
from data.readers import folder, imagenet
from data.readers.base import FileSource, Source, Subset

# Of kaggle.com/datasets/ambityga/imagenet100, sorted: which of the several sets of this name LIFE uses.
WNIDS = """
n01440764 n01443537 n01484850 n01491361 n01494475 n01496331 n01498041 n01514668 n01514859 n01531178 n01537544
n01560419 n01582220 n01592084 n01601694 n01608432 n01614925 n01622779 n01630670 n01632458 n01632777 n01644900
n01664065 n01665541 n01667114 n01667778 n01675722 n01677366 n01685808 n01687978 n01693334 n01695060 n01698640
n01728572 n01729322 n01729977 n01734418 n01735189 n01739381 n01740131 n01742172 n01749939 n01751748 n01753488
n01755581 n01756291 n01770081 n01770393 n01773157 n01773549 n01773797 n01774384 n01774750 n01775062 n01776313
n01795545 n01796340 n01798484 n01806143 n01818515 n01819313 n01820546 n01824575 n01828970 n01829413 n01833805
n01843383 n01847000 n01855672 n01860187 n01877812 n01883070 n01910747 n01914609 n01924916 n01930112 n01943899
n01944390 n01950731 n01955084 n01968897 n01978287 n01978455 n01984695 n01985128 n01986214 n02002556 n02006656
n02007558 n02011460 n02012849 n02013706 n02018207 n02018795 n02027492 n02028035 n02037110 n02051845 n02058221
n02077923
""".split()  # noqa: SIM905
OTHERS = "classes.txt"  # in the root, WordNet ids of another choice


def open_split(root: Path, split: str) -> Source:
    """The images of `split`; classes are the sorted WordNet ids, those in the root's classes.txt if it has one.

    From the set's folders train.X1 ... and val.X, or else from ImageNet as `data.readers.imagenet` reads it. Raises
    DataError if neither is there or classes are missing.
    """
    wnids = sorted(set((root / OTHERS).read_text().split())) if (root / OTHERS).is_file() else WNIDS
    source = _from_parts(sorted(root.glob(f"{split}.X*"))) or imagenet.open_split(root, split)
    missing = sorted(set(wnids) - set(source.classes))
    if missing:
        raise DataError(f"{root} has no {split} images of {len(missing)} classes such as {missing[0]}; add them.")
    kept = np.isin(source.labels, [source.classes.index(wnid) for wnid in wnids])
    return Subset(source, np.flatnonzero(kept), wnids)


def _from_parts(parts: list[Path]) -> Source | None:
    """The images in folders that share the classes among them."""
    if not parts:
        return None
    classes = {part.name: folder.list_classes(part) for part in parts}
    every = sorted({name for names in classes.values() for name in names})
    files = (
        (every.index(name), f"{part.name}/{image}")
        for part in parts
        for name in classes[part.name]
        for image in folder.list_images(part, name)
    )
    return FileSource(parts[0].parent, every, files)

"""ImageNet-ReaL: the validation images of ImageNet with all the labels that people find right ("Are we done with
ImageNet?", Beyer et al., arXiv 2006.07159)."""

import gzip
import json
import re
from importlib.resources import files
from pathlib import Path

import numpy as np
from torch import nn

from gab.errors import UserError
from gab.evaluators.base import Conditions, Images, Result

IMAGES = 50_000  # of ImageNet's validation set, and entries of the file
NAME = re.compile(r"(?:.*/)?ILSVRC2012_val_(\d{8})\.JPEG")
Labels = list[list[int]]  # of each image, by the number in its name, which counts from 1; empty: not to be scored


class Real:
    """The share (percent) of images whose prediction is one of their labels; images without labels are left out."""

    def __init__(self, labels: Labels):
        self.labels = labels

    def __call__(self, model: nn.Module, images: Images, conditions: Conditions) -> Result:
        batches = images()
        predictions = conditions.predict(model, batches, "real")
        labels = [self.labels[number(batches.names[image])] for image in predictions.image]
        hits = [best in right for best, right in zip(predictions.top5[:, 0].tolist(), labels, strict=True) if right]
        if not hits:
            raise UserError("none of the images has ReaL labels: set evaluators.real.root to ImageNet's folder")
        return Result({"top1": 100 * float(np.mean(hits))}, len(hits))


def number(name: str) -> int:
    """The position, from 0, of a validation image in the labels, whatever folder it lies in.

    Raises:
        UserError: it is not one of ImageNet's.
    """
    match = NAME.fullmatch(name)
    if not match or not 1 <= int(match[1]) <= IMAGES:
        raise UserError(
            f"{name} is not an image of ImageNet's validation set, which are named ILSVRC2012_val_00000001.JPEG to "
            f"ILSVRC2012_val_{IMAGES:08d}.JPEG: set evaluators.real.root to ImageNet's folder"
        )
    return int(match[1]) - 1


def read_labels(path: str | None) -> Labels:
    """The labels in `real.json` as published, or gzipped; None: the copy that comes with timm.

    Raises:
        UserError: there is no such file, or it does not have a list of classes for every image.
    """
    try:
        if path is None:
            return json.loads((files("timm") / "data" / "_info" / "imagenet_real_labels.json").read_bytes())
        content = Path(path).expanduser().read_bytes()
        labels = json.loads(gzip.decompress(content) if path.endswith(".gz") else content)
    except (OSError, EOFError, ValueError) as error:
        raise UserError(
            f"evaluators.real.labels={path} cannot be read ({getattr(error, 'strerror', None) or error}): give the "
            "file real.json of google-research/reassessed-imagenet, or null for timm's copy of it"
        ) from error
    if not (isinstance(labels, list) and len(labels) == IMAGES and all(map(_is_list_of_classes, labels))):
        raise UserError(
            f"evaluators.real.labels={path} is not a list of {IMAGES:,} lists of classes from 0 to 999: give the file "
            "real.json of google-research/reassessed-imagenet, or null for timm's copy of it"
        )
    return labels


def _is_list_of_classes(entry: object) -> bool:
    return isinstance(entry, list) and all(type(one) is int and 0 <= one < 1000 for one in entry)

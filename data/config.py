"""What may be set about a data set and about its training crops (schema of `conf/data`)."""

from dataclasses import dataclass, field

from omegaconf import MISSING


@dataclass
class WriteConfig:
    """How `scripts/prepare.py` stores the training images."""

    mode: str = "jpg"  # jpg: the original JPEG where possible, with restart markers; raw: decoded pixels
    max_size: int = 500  # limit of the longer side, pixels
    quality: int = 90  # of images that must be encoded again


@dataclass
class CropConfig:
    """Random crop and flip of the training images."""

    kind: str = "resized"  # resized: a random box, brought to size | padded: a window of the image with a black border
    size: int | None = (
        None  # side in pixels; null: data.image_size. A larger one is cut to its centre after augmentation
    )
    padding: int = 4  # pixels, of padded
    scale: list[float] = field(default_factory=lambda: [0.08, 1.0])  # share of the area
    ratio: list[float] = field(default_factory=lambda: [3 / 4, 4 / 3])  # width / height
    flip: float = 0.5
    interpolation: str = "random"  # bicubic | bilinear | random (either, per sample)


@dataclass
class DataConfig:
    """A data set: where it lies, how it is read, and the evaluation transform (which belongs to the experiment)."""

    name: str = MISSING
    reader: str = "folder"  # a module of data/readers
    root: str = MISSING
    split: str = (
        "official"  # official | pooled: all images, 70 : 15 : 15 to train, validate and test on (GAB's fine-tuning)
    )
    holdout: float = (
        0.0  # share of each training class to validate on; the published validation set is then for the test
    )
    fraction: float = 1.0  # share of each training class to train on
    split_seed: int = 0  # of pooled, holdout and fraction; not the run's seed
    repeats: int = 1  # of every image in an epoch, so that the epoch sees fewer (repeated augmentation)
    metric: str = "top1"  # top1 | mean_per_class: what the data set is judged by; decides which epoch was best
    loader: str = "ffcv"  # ffcv | torch | gpu
    image_size: int = 224
    crop: CropConfig = field(default_factory=CropConfig)
    mean: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.5])
    std: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.5])
    eval_crop: float = 0.9
    eval_interpolation: str = "bicubic"
    eval_source: str = "beton"  # beton: stored after the transform (ffcv loader only) | original: by PIL
    write: WriteConfig = field(default_factory=WriteConfig)
    write_if_missing: bool = False  # small data sets are written at first use
    stage: str | None = None  # node-local folder to copy the .beton files to

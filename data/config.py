"""What may be set about a data set and about its training crops (schema of `conf/data`)."""

from dataclasses import dataclass, field

from omegaconf import MISSING


@dataclass
class WriteConfig:
    """How `scripts/prepare.py` stores the training images."""

    mode: str = "jpg"  # what is stored: jpg (the original JPEG where possible) | raw (decoded pixels)
    max_size: int = 500  # limit of the longer side, pixels
    quality: int = 90  # JPEG quality of images that must be encoded again


@dataclass
class CropConfig:
    """Random crop and flip of the training images."""

    kind: str = "resized"  # what is cut: resized (a random box, brought to size) | padded (a bordered window)
    size: int | None = None  # pixels; null: data.image_size. A larger one is cut to its centre after augmentation
    padding: int = 4  # width of the border in pixels, of padded
    scale: list[float] = field(default_factory=lambda: [0.08, 1.0])  # least and greatest share of the area, of resized
    ratio: list[float] = field(default_factory=lambda: [3 / 4, 4 / 3])  # least and greatest width / height, of resized
    flip: float = 0.5  # probability of a horizontal flip
    interpolation: str = "random"  # of resized: bicubic | bilinear | random (either, per sample)


@dataclass
class DataConfig:
    """A data set: where it lies, how it is read, and the evaluation transform (which belongs to the experiment)."""

    name: str = MISSING  # how runs and tables call it
    reader: str = "folder"  # how the files are read: a module of data/readers
    root: str = MISSING  # the folder with the data set
    split: str = "official"  # which images are for what: official | pooled (all, 70 : 15 : 15 to train, validate and
    # test on: GAB's fine-tuning)
    holdout: float = 0.0  # share of each training class to validate on; then the validation set is for the test
    fraction: float = 1.0  # share of each training class to train on
    split_seed: int = 0  # of pooled, holdout and fraction; not the run's seed
    repeats: int = 1  # times that an epoch shows an image, and so fewer images (repeated augmentation)
    metric: str = "top1"  # what the data set is judged by, and which epoch was best: top1 | mean_per_class
    loader: str = "ffcv"  # what decodes: ffcv | torch (Pillow) | gpu (nvJPEG, for few cores per GPU)
    image_size: int = 224  # side of the images that the network sees, pixels
    crop: CropConfig = field(default_factory=CropConfig)
    mean: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.5])  # of red, green and blue from 0 to 1, subtracted
    std: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.5])  # of red, green and blue, divided by
    eval_crop: float = 0.9  # side of the centre that evaluation keeps, as a share of the shorter side
    eval_interpolation: str = "bicubic"  # of evaluation images: bilinear | bicubic
    eval_source: str = "beton"  # evaluation reads: beton (stored transformed; loaders ffcv, gpu) | original (by Pillow)
    write: WriteConfig = field(default_factory=WriteConfig)
    write_if_missing: bool = False  # writes .beton files at first use; for small data sets
    stage: str | None = None  # folder on the node's own disk, to copy .beton files to; null: none

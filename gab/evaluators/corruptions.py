"""ImageNet-C: 15 corruptions of the validation images at 5 severities (Hendrycks and Dietterich, ICLR 2019)."""

import csv
from pathlib import Path

import numpy as np
from torch import nn

from gab.evaluators.accuracy import score
from gab.evaluators.base import Conditions, Images, Result

# The errors of AlexNet by which the paper divides: percent, mean over the severities, as its authors publish them.
ALEXNET = {
    "gaussian_noise": 88.6428,
    "shot_noise": 89.4468,
    "impulse_noise": 92.2640,
    "defocus_blur": 81.9880,
    "glass_blur": 82.6268,
    "motion_blur": 78.5948,
    "zoom_blur": 79.8360,
    "snow": 86.6816,
    "frost": 82.6572,
    "fog": 81.9324,
    "brightness": 56.4592,
    "contrast": 85.3204,
    "elastic_transform": 64.6056,
    "pixelate": 71.7840,
    "jpeg_compression": 60.6500,
}
SEVERITIES = (1, 2, 3, 4, 5)
PARTS = [f"{corruption}/{severity}" for corruption in ALEXNET for severity in SEVERITIES]


class Corruptions:
    """`mce`: the mean over corruptions of the summed error over AlexNet's (section 4), and `error`: the plain mean.

    Both in percent. Writes the error of every corruption and severity.
    """

    def __call__(self, model: nn.Module, images: Images, conditions: Conditions) -> Result:
        scores = [score(conditions.predict(model, images(part), f"c {part}")) for part in PARTS]
        errors = 100 - np.array([one.top1 for one in scores]).reshape(len(ALEXNET), len(SEVERITIES))
        relative = 100 * errors.mean(1) / np.array(list(ALEXNET.values()))
        path = conditions.file("corruptions.csv")
        if path:
            write_errors(errors, relative, path)
        numbers = {"mce": float(relative.mean()), "error": float(errors.mean())}
        return Result(numbers, sum(one.images for one in scores), [path] if path else [])


def write_errors(errors: np.ndarray, relative: np.ndarray, path: Path) -> None:
    """One CSV row per corruption: its error at each severity, their mean, and that over AlexNet's, all in percent."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["corruption", *(f"error_{severity}" for severity in SEVERITIES), "error", "relative_error"])
        for name, row, one in zip(ALEXNET, errors, relative, strict=True):
            writer.writerow([name, *(f"{value:.3f}" for value in (*row, row.mean(), one))])

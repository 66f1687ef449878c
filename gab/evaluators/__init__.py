"""What looks at a model: model and images in, numbers and files out (see `base`)."""

from gab.evaluators.accuracy import Predictions, Scores, predict, score, write_per_class
from gab.evaluators.base import Conditions, Evaluator, Images, Look, Result, Results, flat, look
from gab.evaluators.corruptions import Corruptions
from gab.evaluators.imagenet import logits, synsets
from gab.evaluators.real import Real, read_labels
from gab.evaluators.top1 import Accuracy

__all__ = [
    "Accuracy",
    "Conditions",
    "Corruptions",
    "Evaluator",
    "Images",
    "Look",
    "Predictions",
    "Real",
    "Result",
    "Results",
    "Scores",
    "flat",
    "logits",
    "look",
    "predict",
    "read_labels",
    "score",
    "synsets",
    "write_per_class",
]

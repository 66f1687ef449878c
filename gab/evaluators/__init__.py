"""What looks at a model: model and batches in, numbers and figures out."""

from gab.evaluators.accuracy import Predictions, Scores, predict, score, write_per_class

__all__ = ["Predictions", "Scores", "predict", "score", "write_per_class"]

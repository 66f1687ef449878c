"""Accuracy as an evaluator: of a data set's own images, or of a set that shares its classes or some of them."""

from collections.abc import Sequence

from torch import Tensor, nn

from gab.evaluators.accuracy import score, write_per_class
from gab.evaluators.base import Conditions, Images, Result


class Accuracy:
    """Top-1, top-5, mean per class and log-loss; writes every prediction and a table of the classes.

    Args:
        name: for the progress bar.
        kept: the logits that predictions are restricted to, in the order of the set's labels; None: all.
    """

    def __init__(self, name: str, kept: Sequence[int] | None = None):
        self.name, self.kept = name, kept

    def __call__(self, model: nn.Module, images: Images, conditions: Conditions) -> Result:
        batches = images()
        network = model if self.kept is None else Restricted(model, self.kept)
        predictions = conditions.predict(network, batches, self.name)
        files = []
        if path := conditions.file("predictions.npz"):
            predictions.save(path, batches.names)
            files.append(path)
        if path := conditions.file("per_class.csv"):
            write_per_class(predictions, batches.classes, path)
            files.append(path)
        scores = score(predictions)
        numbers = {
            "top1": scores.top1,
            "top5": scores.top5,
            "mean_per_class": scores.mean_per_class,
            "log_loss": scores.log_loss,
        }
        return Result(numbers, scores.images, files)


class Restricted(nn.Module):
    """A network that knows some of its classes only: those logits, in the order of `kept`."""

    def __init__(self, model: nn.Module, kept: Sequence[int]):
        super().__init__()
        self.model, self.kept = model, list(kept)
        self.training = model.training  # as it is left when the evaluation is over

    def forward(self, images: Tensor) -> Tensor:
        """Input (B, 3, H, W) to logits (B, len(kept))."""
        return self.model(images)[:, self.kept]

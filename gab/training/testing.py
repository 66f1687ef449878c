"""The test images: shown once, at the end of a run, to weights that were chosen without them."""

import copy
from typing import Any

from torch import nn

from gab.evaluators import in_training, score
from gab.training import checkpoint
from gab.training.interfaces import EvalBatches
from gab.training.sizes import resize, trained_at
from gab.training.state import load_weights
from gab.training.trainer import Trainer


def score_test_images(trainer: Trainer, batches: EvalBatches) -> None:
    """Add the scores of the test images, in float32, to the record and, as `test_top1` and so on, to the final scores.

    `train.test=last` takes the weights of the last epoch, raw and averaged; `best` the raw ones of `best.pt`, which
    scored best on the validation images.
    """
    which, state = trainer.config.train.test, trainer.state
    networks, epoch, step = trainer.networks(), state.epochs, state.step
    if which == "best":
        best, content = _best(trainer)
        networks, epoch, step = {"raw": best}, content["epochs"], content["step"]
    conditions = trainer.conditions(final=True)
    found = {weights: score(conditions.predict(model, batches, "test")) for weights, model in networks.items()}
    trainer.agreement.settle()
    scores = in_training.own_fields(found)
    trainer.observer.write(
        "test",
        epoch=state.epochs,
        step=state.step,
        weights=which,
        images=batches.num_samples,
        **scores,
    )
    trainer.scores |= {f"test_{name}": value for name, value in scores.items()}
    if trainer.processes.first:
        path = trainer.folder / "eval" / "scores.csv"
        with checkpoint.writing(path):
            in_training.enter(
                path,
                trainer.config.data,
                scores,
                {},
                weights=networks,
                images=batches.num_samples,
                checkpoint=f"{which}.pt",
                split="test",
                epoch=epoch,
                step=step,
            )


def _best(trainer: Trainer) -> tuple[nn.Module, dict[str, Any]]:
    """A network with the weights of `best.pt`, for images of the size of an evaluation, and what that file holds."""
    trainer.processes.barrier()  # the first process has written it by now
    content = checkpoint.load(trainer.folder / "checkpoints" / "best.pt")
    model = copy.deepcopy(trainer.state.model)
    resize(model, trainer.state.image_size, trained_at(content))
    load_weights(model, content["model"])
    resize(model, trained_at(content), trainer.config.data.image_size)
    return model, content

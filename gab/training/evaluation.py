"""What a run asks of its own weights: scores of the validation images, what the evaluators find, the test images."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from gab.distributed.processes import Processes
from gab.errors import Unmeasurable
from gab.evaluators import Conditions, Look, Results, in_training, look, score
from gab.models.gaussian import gaussian_values
from gab.training import checkpoint
from gab.training.interfaces import EvalBatches, Observer, Settings
from gab.training.sizes import resize, trained_at
from gab.training.state import TrainState, load_weights


class Evaluation:
    """Looks at the weights of a run, raw and averaged, and enters what it finds into the record and the run's table.

    Args:
        config: the run's config, filled, without `auto`.
        state: holds the weights; its best score is updated here.
        batches: this process's share of the validation images.
        looks: evaluators beside that of the validation images, by name.
        folder: the run's folder.
        prepare: uint8 images (b, 3, S, S) on the device to the network's input.
        between: called after every batch, equally often in all processes; may raise, to end the evaluation.

    Attributes:
        scores: of the last evaluation, as fields of the record; after `test`, those of the test images too.
    """

    def __init__(
        self,
        config: Settings,
        state: TrainState,
        batches: EvalBatches,
        looks: dict[str, Look],
        *,
        processes: Processes,
        folder: Path,
        prepare: Callable[[Tensor], Tensor],
        between: Callable[[], None],
    ):
        self.config, self.state, self.batches, self.looks = config, state, batches, looks
        self.processes, self.folder, self.prepare, self.between = processes, folder, prepare, between
        self.bf16 = config.train.precision == "bf16"
        self.scores: dict[str, float] = {}

    def due(self, epoch: int) -> dict[str, Look]:
        """The evaluators that are due after epoch number `epoch` (from 1), by name."""
        return {name: one for name, one in self.looks.items() if one.due(epoch, self.config.train.epochs)}

    def after_epoch(self, epoch: int, observer: Observer) -> bool:
        """Do all that is due after epoch number `epoch` (from 1).

        Nothing is in the record before all is done: after a signal, the epoch's evaluations are done again.

        Returns:
            Whether the raw weights were scored and have never been better.
        """
        final = epoch == self.config.train.epochs
        results = self._look(epoch, observer, final=final)
        better = (final or epoch % self.config.train.eval_every == 0) and self._score(epoch, observer, final=final)
        if any(results.values()):
            found = {**in_training.fields(results), "figures": in_training.figures(results, self.folder)}
            observer.write("evaluate", epoch=epoch, step=self.state.step, **found)
        if final:
            self._enter(self.scores, results, self.batches, weights=self._held(), epoch=epoch, step=self.state.step)
        return better

    def _look(self, epoch: int, observer: Observer, *, final: bool) -> Results:
        """What the evaluators find that are due; what they cannot measure on some weights is said and left out."""
        due, now = self.due(epoch), f"epoch {epoch}/{self.config.train.epochs}"
        if not due:
            return {}
        observer.say(f"{now}: running {', '.join(due)}")

        def leave_out(name: str, weights: str, why: Unmeasurable) -> None:
            observer.say(f"{now}: {name} finds no numbers for the {weights} weights: {why}")

        folder = self.folder / "eval" / f"epoch_{epoch:04d}"
        with checkpoint.writing(folder):
            drawn = self.folder / "figures" / folder.name
            conditions = replace(self._conditions(final=final), folder=folder, figures=drawn)
            return look(due, self._networks(), conditions, leave_out)

    def _score(self, epoch: int, observer: Observer, *, final: bool) -> bool:
        """Score raw and averaged weights on the validation images; the final time in float32, with predictions kept.

        Returns:
            Whether the raw weights have never been better, in the precision that all epochs are judged in.
        """
        conditions, networks = self._conditions(final=final), self._networks()
        predictions = {
            weights: conditions.predict(model, self.batches, "validation") for weights, model in networks.items()
        }
        scores = {weights: score(one) for weights, one in predictions.items()}
        self.scores = in_training.own_fields(scores)
        if final and self.processes.first:
            path = self.folder / "predictions.npz"
            with checkpoint.writing(path):
                predictions["raw"].save(path, self.batches.names)
        judged = scores["raw"]
        if conditions.bf16 != self.bf16:
            as_ever = self._conditions(final=False)
            judged = score(as_ever.predict(networks["raw"], self.batches, "validation"))
        best = getattr(judged, self.config.data.metric)
        better = best > self.state.best_score
        self.state.best_score = max(best, self.state.best_score)
        observer.write(
            "eval",
            epoch=epoch,
            step=self.state.step,
            samples=self.state.step * self.config.train.batch_size,
            images=len(predictions["raw"].image),
            precision="bf16" if conditions.bf16 else "fp32",
            **self.scores,
            **gaussian_values(self.state.model),
        )
        return better

    def test(self, batches: EvalBatches, observer: Observer) -> None:
        """Add the scores of the test images, in float32, to the record and, as `test_top1` and so on, to the scores.

        They are shown once, at the end of a run, to weights that were chosen without them. `train.test=last` takes the
        weights of the last epoch, raw and averaged; `best` the raw ones of `best.pt`, which scored best on the
        validation images.
        """
        which, state = self.config.train.test, self.state
        networks, epoch, step = self._networks(), state.epochs, state.step
        if which == "best":
            best, content = self._best()
            networks, epoch, step = {"raw": best}, content["epochs"], content["step"]
        conditions = self._conditions(final=True)
        scores = in_training.own_fields(
            {weights: score(conditions.predict(model, batches, "test")) for weights, model in networks.items()}
        )
        observer.write("test", epoch=state.epochs, step=state.step, weights=which, images=batches.num_samples, **scores)
        self.scores |= {f"test_{name}": value for name, value in scores.items()}
        self._enter(
            scores, {}, batches, weights=networks, checkpoint=f"{which}.pt", split="test", epoch=epoch, step=step
        )

    def _best(self) -> tuple[nn.Module, dict[str, Any]]:
        """A network with the weights of `best.pt`, at the size of an evaluation, and what that file holds."""
        self.processes.barrier()  # the first process has written it by now
        content = checkpoint.load(self.folder / "checkpoints" / "best.pt")
        model = copy.deepcopy(self.state.model)
        resize(model, self.state.image_size, trained_at(content))
        load_weights(model, content["model"])
        resize(model, trained_at(content), self.config.data.image_size)
        return model, content

    def _held(self) -> dict[str, nn.Module]:
        """Raw and averaged weights, as they are trained."""
        return {"raw": self.state.model, **({"ema": self.state.ema.module} if self.state.ema else {})}

    def _networks(self) -> dict[str, nn.Module]:
        """Raw and averaged weights; copies where training goes on at another size than that of the evaluation."""
        found = self._held()
        if self.state.image_size != self.config.data.image_size:
            found = copy.deepcopy(found)
            for model in found.values():
                resize(model, self.state.image_size, self.config.data.image_size)
        return found

    def _conditions(self, *, final: bool) -> Conditions:
        """How networks are evaluated: the final time in float32."""

        def between() -> None:
            self.processes.heartbeat.at("evaluating", self.state.step)
            self.between()

        self.processes.heartbeat.at("evaluating", self.state.step)
        return Conditions(self.prepare, self.processes, bf16=self.bf16 and not final, between=between)

    def _enter(self, scores: dict[str, float], results: Results, batches: EvalBatches, **row: Any) -> None:
        """Enter the final scores of `batches` into the run's table; the first process does."""
        if self.processes.first:
            path = self.folder / "eval" / "scores.csv"
            with checkpoint.writing(path):
                in_training.enter(path, self.config.data, scores, results, images=batches.num_samples, **row)

    def close(self) -> None:
        """End the loaders."""
        self.batches.close()
        for one in self.looks.values():
            one.images.close()

"""The training loop: epochs of steps, rows for the record, checkpoints; `Evaluation` looks at what was learned."""

import gc
import itertools
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gab.augment import normalize
from gab.distributed import signals
from gab.distributed.processes import Processes
from gab.errors import Stopped, UserError
from gab.evaluators import Look
from gab.models.gaussian import gaussian_values
from gab.training import batchnorm
from gab.training.agreement import Agreement
from gab.training.assembly import begin, computed, make_step
from gab.training.checkpoint_store import CheckpointStore
from gab.training.ddp import distributed
from gab.training.digest import weights_digest
from gab.training.distillation import Teacher
from gab.training.evaluation import Evaluation
from gab.training.finite import trouble
from gab.training.flops import macs, mfu, peak_flops
from gab.training.interfaces import EvalBatches, Observer, Settings, TrainBatches
from gab.training.meter import Meter
from gab.training.prefetch import Prefetcher
from gab.training.schedule import learning_rate
from gab.training.sizes import move, size_at
from gab.training.step import Part


class Trainer:
    """Trains one model on one set of batches.

    Args:
        config: the run's config, filled, without `auto`.
        container: the same as plain dicts, for the checkpoint.
        model: initialised, on the CPU, for images of the size of the first epoch.
        train, evaluation: batches of this process; for training with images of that size.
        store: takes the checkpoints; None in all processes but the first.
        data_fingerprint: of the data set, by split, for the checkpoints.
        reopen: gives the training batches with images of another size, where `train.sizes` wants them.
        teacher: whose predictions the distillation head learns.
        origins: fingerprints of the weights that the run began with or is taught by, for the checkpoints.
        looks: evaluators beside that of the validation images.
    """

    def __init__(
        self,
        config: Settings,
        container: dict[str, Any],
        *,
        model: nn.Module,
        train: TrainBatches,
        evaluation: EvalBatches,
        processes: Processes,
        folder: Path,
        store: CheckpointStore | None,
        data_fingerprint: dict[str, str],
        reopen: Callable[[int], TrainBatches] | None = None,
        teacher: Teacher | None = None,
        origins: dict[str, str] | None = None,
        looks: dict[str, Look] | None = None,
    ):
        self.config, self.container, self.processes, self.folder = config, container, processes, folder
        self.train_batches, self.reopen, self.store = train, reopen, store
        self.data_fingerprint, self.origins = data_fingerprint, origins or {}
        self.steps_per_epoch = min(train.steps_per_epoch, config.train.max_steps or train.steps_per_epoch)
        image_size = size_at(config.train.sizes, 0, config.data.image_size)
        self.macs = macs(model, image_size)
        self.peak = peak_flops(processes.device)
        self.bf16 = config.train.precision == "bf16"
        self.seconds = 0.0  # of training, this process; GPU-hours count all processes
        self.meter, self.agreement = Meter(processes), Agreement(processes)
        self.digest = 0  # of the images of the epoch so far, this process's
        self.warm = False  # whether this start has done a step
        self.saved = (0, 0)  # steps and epochs that the newest checkpoint holds

        self.initial_weights = weights_digest(model)
        self.state = begin(config, model, processes, image_size)
        self.step = make_step(config, self.state, processes, teacher)
        self.evaluation = Evaluation(
            config,
            self.state,
            evaluation,
            looks or {},
            processes=processes,
            folder=folder,
            prepare=partial(normalize, mean=self.step.augment.mean, std=self.step.augment.std),
            between=self._turn,
        )
        self._distribute()

    def _distribute(self) -> None:
        """Let several processes train one model."""
        if self.processes.count == 1:
            return
        self.step.network = self.state.model
        gc.collect()  # of a DDP before it, whose hooks would add up gradients too
        self.step.network = distributed(
            self.state.model,
            self.step.keys,
            self.processes.device,
            count=self.config.run.micro_batch or self.config.train.batch_size // self.processes.count,
            image_size=self.state.image_size,
            bf16=self.bf16,
        )

    def _move_to(self, image_size: int) -> None:
        """Train on images of another size from here on."""
        if image_size == self.state.image_size:
            return
        assert self.reopen is not None
        self.processes.heartbeat.at("compiling", self.state.step)
        self.train_batches.close()
        self.train_batches = self.reopen(image_size)
        move(self.state, image_size, self.config.optim)
        self.macs = macs(self.state.model, image_size)
        if self.config.run.compile == "true":
            torch.compiler.reset()  # one compilation per size, instead of one that is slower for all sizes
            self.warm = False
        self._distribute()

    # -- the loop -----------------------------------------------------------------------------------------------------

    def fit(self, observer: Observer) -> None:
        """Train from where the state stands to the last epoch; `finish` is to be called after it.

        Args:
            observer: takes the rows; silent on all processes but the first.

        Raises:
            Stopped: a signal asked for it; the state is saved.
            UserError: losses or weights are not finite, or the disk is full.
        """
        self.processes.barrier()  # none steps, and so waits where no signal reaches it, before all can be asked to stop
        signals.defer()
        self.observer = observer
        self.saved_at = time.monotonic()
        while self.state.epochs < self.config.train.epochs:
            self.train_epoch(self.state.epochs)
            self.end_epoch()
        self.agreement.settle()
        self._wait_for_checkpoint()

    def test(self, batches: EvalBatches) -> None:
        """Score the test images, once; to be called after `fit`."""
        self.evaluation.test(batches, self.observer)
        self.agreement.settle()

    def finish(self) -> dict[str, float]:
        """Write the last row; returns the final scores."""
        scores = self.evaluation.scores
        hours = self.seconds * self.processes.count / 3600
        key = "gpu_hours" if self.processes.device.type == "cuda" else "process_hours"
        self.observer.write("end", epoch=self.config.train.epochs, step=self.state.step, **{key: hours}, **scores)
        return scores

    def train_epoch(self, epoch: int) -> None:
        """Train the rest of an epoch, from the state's step on; none where only its evaluation is left."""
        remaining = (epoch + 1) * self.steps_per_epoch - self.state.step
        if not remaining:
            return
        self._move_to(size_at(self.config.train.sizes, epoch, self.config.data.image_size))
        optim, train, heart = self.config.optim, self.config.train, self.processes.heartbeat
        first = self.state.step

        def draw(batch: Any, number: int) -> list[Part]:
            return self.step.draw(batch, epoch=epoch, step=first + number)

        batches = Prefetcher(self._batches(epoch, remaining), self.processes.device, draw)
        self.state.model.train()
        self.meter.start()
        heart.at("loading", self.state.step)
        for batch, parts in batches:
            heart.at("training" if self.warm else "compiling", self.state.step)
            lr = learning_rate(
                self.state.step,
                optim=optim,
                batch_size=train.batch_size,
                steps_per_epoch=self.steps_per_epoch,
                epochs=train.epochs,
            )
            if self.config.run.compile == "true" and not self.warm:
                self.step.augment.warm_up(self.config.run.micro_batch or len(batch.labels), batch.images.shape[-1])
            loss = self.step(batch, parts, lr=lr)
            self.meter.add(loss, train.batch_size, self.state.step)
            self.meter.waited, batches.waited = self.meter.waited + batches.waited, 0.0
            self.digest += batch.digest
            self.warm = True
            self._after_step(lr)
            heart.at("loading", self.state.step)
        self.meter.pause()

    def _after_step(self, lr: float) -> None:
        """A row if one is due, then a checkpoint if one is due, then the end if a signal asked for it."""
        every = self.config.checkpoint.every_steps
        if self.state.step % self.steps_per_epoch == 0:
            self._log_train(lr, images_digest=self._sum_digests())
            self.digest = 0
        elif self.state.step % self.config.run.log_every == 0:
            self._log_train(lr)
        if every and self.state.step % every == 0:
            self.save()
        self._turn()

    def _turn(self) -> None:
        """Between two steps, or two batches of an evaluation: do what any process was asked for.

        Raises:
            Stopped: a signal asked for it; the state is saved.
        """
        minutes = self.config.checkpoint.every_minutes
        due = bool(self.processes.first and minutes and time.monotonic() - self.saved_at >= 60 * minutes)
        if due:
            self.saved_at = time.monotonic()  # wished for once: where there are others, the answer comes a call later
        signal, save = self.agreement(signals.asked(), due)
        if signal or save:
            self._save_if_new()
        if signal:
            self._wait_for_checkpoint()
            self.processes.barrier()  # nobody says that it is saved before it is
            epoch = self.state.step / self.steps_per_epoch
            raise Stopped(signal, f"at step {self.state.step:,} (epoch {epoch:.4g}), which is saved")

    def _batches(self, epoch: int, count: int) -> Iterator[Any]:
        if self.config.train.overfit:
            first = next(iter(self.train_batches.epoch(0)))
            return itertools.repeat(first, count)
        return itertools.islice(self.train_batches.epoch(epoch, self.steps_per_epoch - count), count)

    def end_epoch(self) -> None:
        """What follows the last step of an epoch: an evaluation and a checkpoint, as often as the config wants them."""
        batchnorm.average(self.state, self.processes)
        self._refuse_non_finite()
        number = self.state.epochs + 1
        if self.evaluation.due(number):
            self._save_if_new()  # evaluators may take long, or come upon a damaged file
        better = self.evaluation.after_epoch(number, self.observer)
        self.state.epochs = number
        last = number == self.config.train.epochs or number % self.config.checkpoint.every_epochs == 0
        if last or better:
            self.save(last=last, best=better)

    def _refuse_non_finite(self) -> None:
        """Let nothing be evaluated or saved that a broken step has touched.

        Raises:
            UserError: a loss was not finite, the weights are not, or more steps were left out than the config allows.
        """
        what = trouble(self.state, self.meter, self.config.train.skip_non_finite)
        if what is None:
            return
        self._wait_for_checkpoint()
        step, good = self.saved[0], "there is no checkpoint yet"
        if step:
            good = f"the last good checkpoint is that of step {step:,}, {self.folder / 'checkpoints' / 'last.pt'}"
        raise UserError(f"{what} ({good}): lower optim.lr, or set optim.clip_grad=1.0 or train.skip_non_finite=10")

    # -- what is said and kept ----------------------------------------------------------------------------------------

    def _log_train(self, lr: float, **fields: Any) -> None:
        self._refuse_non_finite()
        averages = self.meter.read()
        self.seconds += averages.pop("seconds")
        self.meter.reset()
        if self.config.train.skip_non_finite:
            fields["skipped"] = int(self.state.skipped)
        if self.store:
            self.store.poll()
        self.observer.write(
            "train",
            epoch=self.state.step / self.steps_per_epoch,
            step=self.state.step,
            samples=self.state.step * self.config.train.batch_size,
            lr=lr,
            mfu=mfu(averages["images_per_second"], self.macs, self.peak, self.processes.count),
            **averages,
            **gaussian_values(self.state.model),
            **fields,
        )

    def _sum_digests(self) -> str:
        """The epoch's digests of all processes, added modulo 2**64, as hexadecimal digits."""
        return f"{sum(self.processes.gather_objects(self.digest)) % 2**64:016x}"

    def save(self, *, last: bool = True, best: bool = False) -> None:
        """Write the state as `last.pt`, `best.pt` or both; the first process does, beside the loop.

        Raises:
            UserError: the state is not finite, or the disk is full.
        """
        self.processes.heartbeat.at("saving", self.state.step)
        self._refuse_non_finite()
        spread = {
            "meter": self.meter.state_dict(),
            "digest": self._sum_digests(),
            "statistics": batchnorm.gather(self.state, self.processes),
        }
        if self.store:
            content = {
                **self.state.state_dict(),
                **spread,
                "config": self.container,
                "classes": self.train_batches.classes,
                "data": self.data_fingerprint,
                "origins": self.origins,
                "computed": computed(self.config, self.state.model, self.processes),
                "seconds": self.seconds,
                "scores": self.evaluation.scores,
                **self.observer.state(),
            }
            self.store.save(content, last=last, best=best)
        if last:
            self.saved, self.saved_at = (self.state.step, self.state.epochs), time.monotonic()

    def _save_if_new(self) -> None:
        """Save, unless the newest checkpoint holds all that is done."""
        if self.saved != (self.state.step, self.state.epochs):
            self.save()

    def _wait_for_checkpoint(self) -> None:
        """Return when what was saved is on the disk."""
        self.processes.heartbeat.at("saving", self.state.step)
        if self.store:
            self.store.wait()

    def resume(self, content: dict[str, Any]) -> None:
        """Take up the state of a checkpoint, and the number of threads, which decides the order of sums on a CPU."""
        if content["computed"]["processes"] == self.processes.count:
            torch.set_num_threads(content["computed"]["threads"])
        self._move_to(content["image_size"])
        self.state.load_state_dict(content)
        batchnorm.restore(self.state, self.processes, content["statistics"])
        self.meter.load_state_dict(content["meter"])
        self.digest = int(content["digest"], 16) if self.processes.first else 0
        self.seconds, self.evaluation.scores = content["seconds"], content["scores"]
        self.origins = content["origins"] | self.origins
        self.saved = (self.state.step, self.state.epochs)

    def close(self) -> None:
        """End the loaders."""
        self.train_batches.close()
        self.evaluation.close()

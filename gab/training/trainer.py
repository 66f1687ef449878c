"""The training loop: epochs of steps, rows for the record, evaluations, checkpoints."""

import itertools
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch
from timm.utils import ModelEmaV3, distribute_bn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gab.augment import Augment, normalize
from gab.errors import UserError
from gab.evaluators import Predictions, predict, score
from gab.models import gaussians
from gab.models.stochastic import attach_keys
from gab.processes import Processes
from gab.training import checkpoint
from gab.training.digest import weights_digest
from gab.training.flops import macs, mfu, peak_flops
from gab.training.interfaces import EvalBatches, Observer, TrainBatches
from gab.training.meter import Meter
from gab.training.parameter_groups import parameter_groups
from gab.training.prefetch import Prefetcher
from gab.training.schedule import learning_rate
from gab.training.state import TrainState
from gab.training.step import TrainStep


class Trainer:
    """Trains one model on one set of batches.

    Args:
        config: `conf.schema.Config`, filled.
        container: the same as plain dicts, for the checkpoint.
        model: initialised, on the CPU.
        train, evaluation: batches of this process.
    """

    def __init__(
        self,
        config: Any,
        container: dict[str, Any],
        *,
        model: nn.Module,
        train: TrainBatches,
        evaluation: EvalBatches,
        processes: Processes,
        folder: Path,
    ):
        self.config, self.container, self.processes, self.folder = config, container, processes, folder
        self.train_batches, self.evaluation = train, evaluation
        self.steps_per_epoch = min(train.steps_per_epoch, config.train.max_steps or train.steps_per_epoch)
        self.macs = macs(model, config.data.image_size)
        self.peak = peak_flops(processes.device)
        self.bf16 = config.train.precision == "bf16"
        self.seconds = 0.0  # of training, this process; GPU-hours count all processes
        self.scores: dict[str, float] = {}  # of the last evaluation
        self.meter = Meter(processes)

        self.initial_weights = weights_digest(model)
        model.to(processes.device)
        ema = ModelEmaV3(model, decay=config.train.ema_decay) if config.train.ema_decay else None
        keys = attach_keys(model, config.seed, processes.device)
        optim = config.optim
        optimizer = torch.optim.AdamW(
            parameter_groups(model, optim), lr=optim.lr, betas=tuple(optim.betas), eps=optim.eps, fused=True
        )
        self.state = TrainState(model, optimizer, ema)
        if config.run.compile == "true":  # in place and before DDP, so that names stay and both take effect
            model.compile()
            if ema:
                ema.module.compile()
        network: nn.Module = model
        if processes.count > 1:
            devices = [processes.device] if processes.device.type == "cuda" else None
            with warnings.catch_warnings():  # torch 2.15 has a new name for broadcast_buffers, 2.11 only this one
                warnings.simplefilter("ignore", FutureWarning)
                network = DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False)
        self.augment = Augment(
            config.augment, seed=config.seed, mean=config.data.mean, std=config.data.std, device=processes.device
        )
        self.step = TrainStep(
            self.state,
            network,
            self.augment,
            keys,
            processes,
            seed=config.seed,
            bf16=self.bf16,
            micro_batch=config.run.micro_batch,
            clip_grad=optim.clip_grad,
            label_smoothing=config.augment.label_smoothing,
        )

    # -- the loop -----------------------------------------------------------------------------------------------------

    def fit(self, observer: Observer) -> None:
        """Train from where the state stands to the last epoch; `finish` is to be called after it.

        Args:
            observer: takes the rows; silent on all processes but the first.
        """
        self.observer = observer
        for epoch in range(self.state.step // self.steps_per_epoch, self.config.train.epochs):
            self.train_epoch(epoch)
            self._agree_on_statistics()
            self._refuse_non_finite()
            last = epoch + 1 == self.config.train.epochs
            if last or (epoch + 1) % self.config.train.eval_every == 0:
                self.evaluate(epoch, final=last)
            if last or (epoch + 1) % self.config.checkpoint.every_epochs == 0:
                self.save("last")

    def finish(self) -> dict[str, float]:
        """Write the last row; returns the final scores."""
        hours = self.seconds * self.processes.count / 3600
        key = "gpu_hours" if self.processes.device.type == "cuda" else "process_hours"
        self.observer.write("end", epoch=self.config.train.epochs, step=self.state.step, **{key: hours}, **self.scores)
        return self.scores

    def train_epoch(self, epoch: int) -> None:
        """Train the rest of an epoch, from the state's step on."""
        optim, train = self.config.optim, self.config.train
        digest = 0
        batches = Prefetcher(self._batches(epoch), self.processes.device)
        self.state.model.train()
        self.meter.reset()
        for batch in batches:
            lr = learning_rate(
                self.state.step,
                optim=optim,
                batch_size=train.batch_size,
                steps_per_epoch=self.steps_per_epoch,
                epochs=train.epochs,
            )
            self.meter.add(self.step(batch, epoch=epoch, lr=lr), train.batch_size)
            self.meter.waited, batches.waited = self.meter.waited + batches.waited, 0.0
            digest += batch.digest
            if self.state.step % self.steps_per_epoch == 0:
                self._log_train(lr, images_digest=self._sum_digests(digest))
            elif self.state.step % self.config.run.log_every == 0:
                self._log_train(lr)

    def _batches(self, epoch: int) -> Iterator[Any]:
        start = self.state.step % self.steps_per_epoch
        if self.config.train.overfit:
            first = next(iter(self.train_batches.epoch(0)))
            return itertools.repeat(first, self.steps_per_epoch - start)
        return itertools.islice(self.train_batches.epoch(epoch, start), self.steps_per_epoch - start)

    def evaluate(self, epoch: int, *, final: bool) -> None:
        """Evaluate raw and averaged weights after `epoch`; the final time in float32, with predictions kept."""
        bf16 = self.bf16 and not final
        predictions = self.predictions(self.state.model, bf16)
        raw = score(predictions)
        scores = {"top1": raw.top1, "top5": raw.top5, "loss": raw.log_loss}
        if self.state.ema:
            averaged = score(self.predictions(self.state.ema.module, bf16))
            scores |= {"top1_ema": averaged.top1, "top5_ema": averaged.top5, "loss_ema": averaged.log_loss}
        self.scores = scores
        if final and self.processes.first:
            predictions.save(self.folder / "predictions.npz", self.evaluation.names)
        if raw.top1 > self.state.best_top1:
            self.state.best_top1 = raw.top1
            self.save("best")
        self.observer.write(
            "eval",
            epoch=epoch + 1,
            step=self.state.step,
            samples=self.state.step * self.config.train.batch_size,
            images=raw.images,
            precision="bf16" if bf16 else "fp32",
            **scores,
            **self.gaussian_values(),
        )

    def predictions(self, model: nn.Module, bf16: bool) -> Predictions:
        def prepare(images: Tensor) -> Tensor:
            return normalize(images, self.augment.mean, self.augment.std)

        return predict(model, self.evaluation, prepare, self.processes, bf16=bf16)

    def _agree_on_statistics(self) -> None:
        """Average what BatchNorm layers, if there are any, have seen in each process: one model, not one each."""
        if self.processes.count > 1:
            distribute_bn(self.state.model, self.processes.count, reduce=True)
            if self.state.ema:
                distribute_bn(self.state.ema.module, self.processes.count, reduce=True)

    def _refuse_non_finite(self) -> None:
        """Let no broken weights be evaluated or saved: the last loss of an epoch was computed before its update."""
        sums = torch.stack([p.detach().float().sum() for p in self.state.model.parameters()])
        if not math.isfinite(sums.sum().item()):
            self._stop_non_finite("the weights are not finite")

    def _stop_non_finite(self, what: str) -> NoReturn:
        last = self.folder / "checkpoints" / "last.pt"
        good = f" (the last good state is {last})" if last.is_file() else ""
        raise UserError(f"{what} by step {self.state.step}{good}: lower optim.lr, or set optim.clip_grad=1.0")

    # -- what is said and kept ----------------------------------------------------------------------------------------

    def _log_train(self, lr: float, **fields: Any) -> None:
        averages = self.meter.read()
        self.seconds += averages.pop("seconds")
        self.meter.reset()
        if not math.isfinite(averages["loss"]):
            self._stop_non_finite(f"the loss is {averages['loss']}")
        self.observer.write(
            "train",
            epoch=self.state.step / self.steps_per_epoch,
            step=self.state.step,
            samples=self.state.step * self.config.train.batch_size,
            lr=lr,
            mfu=mfu(averages["images_per_second"], self.macs, self.peak, self.processes.count),
            **averages,
            **self.gaussian_values(),
            **fields,
        )

    def gaussian_values(self) -> dict[str, list[Any]]:
        """|sigma| (patches) and A of every layer, in network order: a number, or one per head."""
        layers = list(gaussians(self.state.model).values())
        if not layers:
            return {}
        read = iter(torch.cat([torch.cat([g.sigma.abs(), g.amplitude]) for g in layers]).tolist())
        sigma: list[Any] = []
        amplitude: list[Any] = []
        for count in (len(g.sigma) for g in layers):
            for values in (sigma, amplitude):
                pair = list(itertools.islice(read, count))
                values.append(pair if count > 1 else pair[0])
        return {"sigma": sigma, "amplitude": amplitude}

    def _sum_digests(self, digest: int) -> str:
        """The digests of all processes, added modulo 2**64, as hexadecimal digits."""
        return f"{sum(self.processes.gather_objects(digest)) % 2**64:016x}"

    def save(self, name: str) -> None:
        """Write `checkpoints/<name>.pt` (first process)."""
        if self.processes.first:
            checkpoint.save(
                self.folder / "checkpoints" / f"{name}.pt",
                {
                    **self.state.state_dict(),
                    "config": self.container,
                    "classes": self.train_batches.classes,
                    "seconds": self.seconds,
                    "scores": self.scores,
                    "record": self.observer.position(),
                },
            )
        self.processes.barrier()

    def resume(self, content: dict[str, Any]) -> int:
        """Take up the state of a checkpoint; returns its position in the record."""
        self.state.load_state_dict(content)
        self.seconds, self.scores = content["seconds"], content["scores"]
        return content["record"]

    def close(self) -> None:
        """End the loaders."""
        self.train_batches.close()
        self.evaluation.close()

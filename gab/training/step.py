"""One optimisation step: a global batch in, new weights out, nothing read back from the device.

What is random about it is drawn before, on the CPU (`TrainStep.draw`), beside the step before it.
"""

import contextlib
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gab.augment import Augment, Drawn
from gab.distributed.processes import Processes
from gab.models.stochastic import Keys
from gab.random import hash_key, seed_generators
from gab.training.batchnorm import running
from gab.training.objective import Objective
from gab.training.state import TrainState


class Part(NamedTuple):
    """What is drawn for a micro-batch."""

    keys: Tensor  # (B,) of drop-path
    augment: Drawn


class TrainStep:
    """The arithmetic of a step; all randomness comes from (seed, epoch, step, sample index)."""

    def __init__(
        self,
        state: TrainState,
        network: nn.Module,
        augment: Augment,
        objective: Objective,
        keys: Keys,
        processes: Processes,
        *,
        seed: int,
        bf16: bool,
        micro_batch: int | None,
        clip_grad: float | None,
        skip_non_finite: bool,
    ):
        self.state, self.network, self.augment, self.objective = state, network, augment, objective
        self.keys, self.processes, self.seed, self.bf16, self.micro_batch = keys, processes, seed, bf16, micro_batch
        self.clip_grad, self.skip_non_finite = clip_grad, skip_non_finite

    def draw(self, batch: Any, *, epoch: int, step: int) -> list[Part]:
        """What the micro-batches of step `step` need beside this process's share of its batch, on the CPU."""
        first, size, parts = self.processes.rank * len(batch.indices), batch.images.shape[-1], []
        for indices in batch.indices.split(self.micro_batch or len(batch.indices)):
            drawn = self.augment.draw(indices, size=size, epoch=epoch, step=step, first=first)
            parts.append(Part(self.keys.draw(epoch, indices), drawn))
            first += len(indices)
        return parts

    def __call__(self, batch: Any, parts: list[Part], *, lr: float) -> Tensor:
        """Train on this process's share of a global batch and what was drawn for it, both on the device.

        Returns its mean loss (), on the device and not yet read.
        """
        state, micro = self.state, len(batch.labels) // len(parts)
        for group in state.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        before = [(one, one.clone()) for one in running(state.model).values()] if self.skip_non_finite else []
        loss = torch.zeros((), device=self.processes.device)
        for number, part in enumerate(parts):
            rows = slice(number * micro, (number + 1) * micro)
            with self._synchronised(last=part is parts[-1]):
                share = self._loss(batch.images[rows], batch.labels[rows], part, number) * (micro / len(batch.labels))
                share.backward()
            loss += share.detach()
        if self.clip_grad or self.skip_non_finite:
            norm = nn.utils.clip_grad_norm_(state.model.parameters(), self.clip_grad or math.inf)
            if self.skip_non_finite:
                self._skip_unless(norm.isfinite(), before)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        if state.ema:
            state.ema.update(state.step)
        return loss

    def _skip_unless(self, finite: Tensor, before: list[tuple[Tensor, Tensor]]) -> None:
        """Let the optimiser leave this step out, decided on the device: the fused AdamW asks as for loss scaling.

        Args:
            before: BatchNorm's statistics, which the forward pass has changed already, and copies of what they were.
        """
        for statistic, value in before:
            statistic.copy_(torch.where(finite, statistic, value))
        self.state.skipped += ~finite
        self.state.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]

    def _loss(self, images: Tensor, labels: Tensor, part: Part, number: int) -> Tensor:
        step, rank = self.state.step, self.processes.rank
        self.keys.take(step, part.keys)
        seed_generators(hash_key("dropout", self.seed, step, rank, number), self.processes.device)  # of plain dropout
        images, targets = self.augment.apply(images, labels, part.augment)
        with torch.autocast(self.processes.device.type, torch.bfloat16, enabled=self.bf16):
            output = self.network(images)
        return self.objective(output, targets, images)

    def _synchronised(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        """Gradients are averaged over processes once a step, with the last micro-batch."""
        if last or not isinstance(self.network, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.network.no_sync()

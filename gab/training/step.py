"""One optimisation step: a global batch in, new weights out, nothing read back from the device."""

import contextlib
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gab.augment import Augment
from gab.distributed.processes import Processes
from gab.models.stochastic import Keys
from gab.random import hash_key
from gab.training.objective import Objective
from gab.training.state import TrainState


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

    def __call__(self, batch: Any, *, epoch: int, lr: float) -> Tensor:
        """Train on this process's share of a global batch; returns its mean loss () on the device, not yet read."""
        state, count = self.state, len(batch.labels)
        for group in state.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        micro = self.micro_batch or count
        loss = torch.zeros((), device=self.processes.device)
        for number, start in enumerate(range(0, count, micro)):
            part = slice(start, start + micro)
            with self._synchronised(last=start + micro >= count):
                share = self._loss(batch, part, epoch=epoch, number=number) * (micro / count)
                share.backward()
            loss += share.detach()
        if self.clip_grad or self.skip_non_finite:
            norm = nn.utils.clip_grad_norm_(state.model.parameters(), self.clip_grad or math.inf)
            if self.skip_non_finite:
                self._skip_unless(norm.isfinite())
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        if state.ema:
            state.ema.update(state.model, state.step)
        return loss

    def _skip_unless(self, finite: Tensor) -> None:
        """Let the optimiser leave this step out, decided on the device: the fused AdamW asks as for loss scaling."""
        self.state.skipped += ~finite
        self.state.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]

    def _loss(self, batch: Any, part: slice, *, epoch: int, number: int) -> Tensor:
        step, rank = self.state.step, self.processes.rank
        self.keys.set(epoch, step, batch.indices[part])
        torch.manual_seed(hash_key("dropout", self.seed, step, rank, number))  # of element-wise dropout
        images, targets = self.augment(
            batch.images[part],
            batch.labels[part],
            batch.indices[part],
            epoch=epoch,
            step=step,
            first=rank * len(batch.labels) + part.start,
        )
        with torch.autocast(self.processes.device.type, torch.bfloat16, enabled=self.bf16):
            output = self.network(images)
        return self.objective(output, targets, images)

    def _synchronised(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        """Gradients are averaged over processes once a step, with the last micro-batch."""
        if last or not isinstance(self.network, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.network.no_sync()

"""What a train row averages: loss, rate and data wait since the row before."""

import time
from typing import Any

import torch
from torch import Tensor

from gab.distributed.processes import Processes


class Meter:
    """Sums on the device; reading it is the only synchronisation between host and device in the loop.

    It is part of a run's state: a run that stops between two rows goes on in the middle of the sums.
    """

    def __init__(self, processes: Processes):
        self.processes = processes
        self.loss = torch.zeros((), dtype=torch.float64, device=processes.device)
        self.bad_losses = torch.zeros((), dtype=torch.int64, device=processes.device)
        self.first_bad = torch.zeros((), dtype=torch.int64, device=processes.device)  # step; 0: none
        self.running_since: float | None = None
        self.reset()

    def reset(self) -> None:
        """Begin a row. The clock runs on if it was running."""
        for tensor in (self.loss, self.bad_losses, self.first_bad):
            tensor.zero_()
        self.steps = self.images = 0
        self.waited = self.seconds = 0.0
        if self.running_since is not None:
            self.running_since = time.perf_counter()

    def start(self) -> None:
        """Let the clock run: training begins or goes on."""
        self.running_since = time.perf_counter()

    def pause(self) -> None:
        """Stop the clock: what follows is not training."""
        self.seconds, self.running_since = self._elapsed(), None

    def _elapsed(self) -> float:
        running = time.perf_counter() - self.running_since if self.running_since is not None else 0.0
        return self.seconds + running

    def add(self, loss: Tensor, images: int, step: int) -> None:
        """Step `step` (from 1): this process's loss and the size of the global batch. A loss not finite is left out."""
        good = loss.isfinite()
        self.loss += torch.where(good, loss, 0)
        self.bad_losses += ~good
        self.first_bad += torch.where(good | (self.first_bad > 0), 0, step)
        self.steps += 1
        self.images += images

    def read(self) -> dict[str, float]:
        """Averages over steps and processes; `seconds` is the time that they took, `data_wait` a share of it."""
        sums = torch.stack([self.loss, self.bad_losses.double(), torch.full_like(self.loss, self.waited)])
        loss, bad, waited = self.processes.sum(sums).tolist()
        seconds = max(self._elapsed(), 1e-9)
        return {
            "loss": loss / max(self.steps * self.processes.count - bad, 1),
            "images_per_second": self.images / seconds,
            "data_wait": min(waited / self.processes.count / seconds, 1.0),
            "seconds": seconds,
        }

    def first_non_finite(self) -> int | None:
        """The first step since the row before whose loss was not finite in any process; None: all were finite."""
        steps = [step for step in self.processes.gather_objects(self.first_bad.item()) if step]
        return int(min(steps)) if steps else None

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers. The losses of each process stay apart, so that adding up goes on as it began."""
        return {
            "losses": self.processes.gather_objects(self.loss.item()),
            "waited": sum(self.processes.gather_objects(self.waited)),
            "left_out": sum(self.processes.gather_objects(self.bad_losses.item())),
            "steps": self.steps,
            "images": self.images,
            "seconds": self._elapsed(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`, which may come from another number of processes."""
        self.reset()
        count, losses = self.processes.count, state["losses"]
        share = count / len(losses)  # sums over all processes grow with their number
        if share != 1:
            losses = [share * sum(losses)] + [0.0] * (count - 1)
        self.loss.fill_(losses[self.processes.rank])
        if self.processes.first:
            self.waited, left_out = share * state["waited"], round(share * state["left_out"])
            self.bad_losses.fill_(left_out)
        self.steps, self.images, self.seconds = state["steps"], state["images"], state["seconds"]

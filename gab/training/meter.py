"""What a train row averages: loss, rate and data wait since the row before."""

import time

import torch
from torch import Tensor

from gab.processes import Processes


class Meter:
    """Sums on the device; reading it is the only synchronisation between host and device in the loop."""

    def __init__(self, processes: Processes):
        self.processes = processes
        self.loss = torch.zeros((), dtype=torch.float64, device=processes.device)
        self.reset()

    def reset(self) -> None:
        self.loss.zero_()
        self.steps = self.images = 0
        self.waited, self.started = 0.0, time.perf_counter()

    def add(self, loss: Tensor, images: int) -> None:
        """One step: this process's loss and the size of the global batch."""
        self.loss += loss
        self.steps += 1
        self.images += images

    def read(self) -> dict[str, float]:
        """Averages over steps and processes; `seconds` is the time that they took, `data_wait` a share of it."""
        total = self.processes.sum(torch.stack([self.loss, torch.full_like(self.loss, self.waited)]))
        loss, waited = (total / self.processes.count).tolist()
        seconds = max(time.perf_counter() - self.started, 1e-9)
        return {
            "loss": loss / max(self.steps, 1),
            "images_per_second": self.images / seconds,
            "data_wait": min(waited / seconds, 1.0),
            "seconds": seconds,
        }

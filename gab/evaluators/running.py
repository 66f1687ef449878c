"""A mean over images that arrive in batches, with its standard error."""

import torch
from torch import Tensor


class RunningMean:
    """Sums and sums of squares, in float64 on the CPU, so that batches and processes change them by rounding alone.

    Attributes:
        count: images so far.
        sum, squares: over images, of any one shape.
    """

    def __init__(self, shape: tuple[int, ...]):
        self.count = 0
        self.sum = torch.zeros(shape, dtype=torch.float64)
        self.squares = torch.zeros_like(self.sum)

    def add(self, values: Tensor, dim: int) -> None:
        """Take in a batch whose images lie along `dim`."""
        values = values.double()
        self.sum += values.sum(dim).cpu()
        self.squares += values.square().sum(dim).cpu()
        self.count += values.shape[dim]

    def merge(self, other: "RunningMean") -> None:
        """Take in the images of another one."""
        self.sum += other.sum
        self.squares += other.squares
        self.count += other.count

    @property
    def mean(self) -> Tensor:
        """NaN without images."""
        return self.sum / self.count

    @property
    def standard_error(self) -> Tensor:
        """Of the mean; NaN for a single image."""
        if self.count < 2:
            return torch.full_like(self.sum, torch.nan)
        variance = (self.squares - self.sum.square() / self.count) / (self.count - 1)
        return (variance.clamp(min=0) / self.count).sqrt()

"""Effective receptive fields: which pixels the features of a patch depend on, as the GAB paper measures them.

For an image, y is the mean over channels of the features of the target patch, and G the gradient of y with respect to
the network's input, averaged over the colours. The field is the mean over images of ReLU(G): what pulls the patch up,
taken image by image, since positive and negative gradients of different images would cancel (Kim et al., BMVC 2023,
section 3; after Luo et al., NeurIPS 2016). In eval mode no image knows of another, so the gradient of the sum over a
batch holds every image's own.

    field = effective_receptive_field(model, images)     # images (n, 3, H, W), normalised as the network wants them
    field.maps[0], field.relative_error, field.fit()[0], field.areas()[0]

What makes it cheap: gradients go to the images alone, so no gradient of a weight is computed and learned biases do not
keep attention off its fast path; nothing behind the layer is computed, and a ViT's last MLP for the target alone;
several images share a backward pass.
"""

from collections.abc import Callable, Iterable, Sequence
from operator import index
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gab.errors import Unmeasurable, UserError
from gab.evaluators.areas import MASSES, area, own_share
from gab.evaluators.frozen import frozen
from gab.evaluators.gaussian_fit import GaussianFit, fit_gaussian
from gab.evaluators.readouts import Probe, barely_scaled
from gab.evaluators.running import RunningMean
from gab.models.gaussian import Grid

BATCH = 16  # images of one backward pass; on a CPU more are no faster
ENOUGH = 8  # images without which no Gaussian is fitted
Target = int | Sequence[int] | Sequence[Sequence[int]]


class ReceptiveField:
    """The field of one or more target patches, as a running mean over images.

    Attributes:
        measured: the readout in words; fields of different ones are not comparable.
        grid: patches (h, w) of the layer.
        targets: (row, column) of each target patch.
        image_size: pixels (H, W).
        count: images so far.
        notes: what a reader of the map must know, one sentence each.
    """

    def __init__(self, measured: str, grid: Grid, targets: list[Grid], image_size: Grid):
        self.measured, self.grid, self.targets, self.image_size = measured, grid, targets, image_size
        self.notes: list[str] = []
        self._running = RunningMean((len(targets), *image_size))

    def add(self, positive: Tensor) -> None:
        """Take in images: their rectified gradients (T, B, H, W), averaged over the colours."""
        self._running.add(positive, dim=1)

    def merge(self, other: "ReceptiveField") -> None:
        """Take in the images of another field of the same kind, such as another process's."""
        self._running.merge(other._running)

    @property
    def count(self) -> int:
        return self._running.count

    @property
    def maps(self) -> np.ndarray:
        """The field of every target, (T, H, W) float64, per unit of the network's input."""
        return self._running.mean.numpy()

    @property
    def standard_errors(self) -> np.ndarray:
        """Of every pixel of `maps`, (T, H, W); NaN for a single image."""
        return self._running.standard_error.numpy()

    @property
    def relative_error(self) -> float:
        """Root mean square of the standard errors over that of the maps, the worst of the targets."""
        error, size = (np.sqrt(np.square(x).mean((1, 2))) for x in (self.standard_errors, self.maps))
        return float((error / size).max())

    @property
    def patch_size(self) -> tuple[float, float]:
        """Pixels per patch of the layer, (down, across)."""
        return self.image_size[0] / self.grid[0], self.image_size[1] / self.grid[1]

    def centres(self) -> list[tuple[float, float]]:
        """The middle of every target patch, in pixels (y, x), where pixel 0 has its middle at 0."""
        down, across = self.patch_size
        return [((row + 0.5) * down - 0.5, (column + 0.5) * across - 0.5) for row, column in self.targets]

    def fit(self) -> list[GaussianFit]:
        """A Gaussian for the map of every target; raises UserError for too few images."""
        if self.count < ENOUGH:
            raise UserError(f"{self.count} images are too few to fit a Gaussian to their field: give {ENOUGH} or more")
        return [fit_gaussian(one) for one in self.maps]

    def areas(self) -> list[dict[int, float]]:
        """Of every target, for 20, 30, 50 and 99 % of the mass: the least share of the pixels that holds it."""
        return [{mass: area(one, mass) for mass in MASSES} for one in self.maps]

    def own_shares(self) -> list[float]:
        """The share of every field that lies inside of its target patch."""
        return [own_share(one, self.grid, target) for one, target in zip(self.maps, self.targets, strict=True)]

    def _settings(self) -> dict[str, Any]:
        targets = [list(target) for target in self.targets]
        return {
            "measured": self.measured,
            "grid": list(self.grid),
            "targets": targets,
            "image_size": list(self.image_size),
        }

    def state_dict(self) -> dict[str, Any]:
        """All that another session needs to go on; plain tensors and numbers."""
        sums = {"sum": self._running.sum.clone(), "squares": self._running.squares.clone()}
        return {"settings": self._settings(), "count": self.count, **sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; raises UserError if it is the state of a field of another kind."""
        own, given = self._settings(), state["settings"]
        differing = [f"{key} {given.get(key)} -> {value}" for key, value in own.items() if given.get(key) != value]
        if differing:
            raise UserError(f"the saved receptive field is another one ({', '.join(differing)}): begin a new file")
        self._running.count = state["count"]
        self._running.sum.copy_(state["sum"])
        self._running.squares.copy_(state["squares"])


class Measurement:
    """Takes batches of images and gives the receptive field of what it has seen.

    Args:
        target: k: k x k patches spread evenly, 1: the patch in the middle, of a 14 x 14 grid that in row and column 6,
            as in the paper; or (row, column) of a patch, from 0; or a list of these.
        layer, readout: see `Probe`.
        state: of `ReceptiveField.state_dict`, to go on from.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        target: Target = 1,
        layer: str | int | None = None,
        readout: str = "mean",
        state: dict[str, Any] | None = None,
    ):
        self.model, self.target, self._state = model, target, state
        self.probe = Probe(model, layer, readout)
        self.probe.require_signal()
        self.field: ReceptiveField | None = None

    def add(self, images: Tensor) -> ReceptiveField:
        """Take in a batch, the network's input (B, 3, H, W); one pass forward, and one backward per target.

        Raises:
            UserError: a target outside of the grid.
            Unmeasurable: gradients that do not reach the images or are not finite.
        """
        field = self.skip(images)
        with frozen(self.model), self.probe.only(field.targets, field.grid):
            images = images.detach().requires_grad_()
            outputs = self.probe(images)  # (B, h, w)
            positive = torch.stack([self._positive(outputs, images, *one) for one in field.targets])
        field.add(positive)
        return field

    def skip(self, images: Tensor) -> ReceptiveField:
        """The field as it stands, such as one that has seen these images already; they tell its shape."""
        with frozen(self.model), torch.no_grad():
            self.field = self.field or self._open(self.probe(images[:1]), images)
        return self.field

    def _open(self, outputs: Tensor, images: Tensor) -> ReceptiveField:
        """An empty field, or the one to go on from."""
        height, width = outputs.shape[1:]
        targets = choose_targets(self.target, (height, width))
        image_size = images.shape[-2], images.shape[-1]
        field = ReceptiveField(self.probe.measured, (height, width), targets, image_size)
        if self._state is not None:
            field.load_state_dict(self._state)
        scale = barely_scaled(self.model)
        if scale is not None:
            field.notes.append(
                f"LayerScale is at most {scale:.0e} in this network, as before training, so its field is little more "
                "than the target patch, whatever its positions or biases: look at trained weights, or raise "
                "model.layer_scale"
            )
        return field

    def _positive(self, outputs: Tensor, images: Tensor, row: int, column: int) -> Tensor:
        """ReLU of the gradient of one patch with respect to every image, mean over colours, (B, H, W)."""
        gradient = None
        if outputs.requires_grad:
            total = outputs[:, row, column].sum()
            [gradient] = torch.autograd.grad(total, images, retain_graph=True, allow_unused=True)
        if gradient is None:
            raise Unmeasurable(
                f"no gradient of {self.probe.measured} reaches the images: choose another layer, or a network that "
                "detaches nothing"
            )
        if not gradient.isfinite().all():
            raise Unmeasurable(
                f"the gradient of {self.probe.measured} is not finite: the weights or the images hold NaN or infinity"
            )
        return gradient.mean(1).relu()


def effective_receptive_field(
    model: nn.Module,
    images: Tensor | Iterable[Tensor],
    *,
    target: Target = 1,
    layer: str | int | None = None,
    readout: str = "mean",
    until: float | None = None,
    batch_size: int = BATCH,
    state: dict[str, Any] | None = None,
    after: Callable[[ReceptiveField], None] = lambda field: None,
) -> ReceptiveField:
    """The effective receptive field of a network over images.

    Args:
        model: on the device of the images; it is used in eval mode and left as it was.
        images: the network's input (n, 3, H, W), or batches of it; batches are taken as they come, which changes the
            result by rounding alone.
        target, layer, readout: see `Measurement` and `Probe`; by default the paper's.
        until: stop when the relative standard error is below this; None: take all images.
        batch_size: of a tensor's parts.
        state: to go on from, see `ReceptiveField.state_dict`; images that it holds are skipped.
        after: called after every batch, to keep the state or to say how far it is.

    Raises:
        UserError: no images, or what `Measurement` and `Probe` refuse.
    """
    measurement = Measurement(model, target=target, layer=layer, readout=readout, state=state)
    seen, field = state["count"] if state else 0, None
    for batch in images.split(batch_size) if isinstance(images, Tensor) else images:
        skipped, seen = min(seen, len(batch)), max(seen - len(batch), 0)
        field = measurement.add(batch[skipped:]) if skipped < len(batch) else measurement.skip(batch)
        after(field)
        if until is not None and field.relative_error < until:
            break
    if field is None:
        raise UserError("a receptive field needs images, and there are none")
    return field


def choose_targets(target: Target, grid: Grid) -> list[Grid]:
    """The patches (row, column) that `target` means on a grid (h, w); raises UserError for one outside of it."""
    height, width = grid
    if isinstance(target, int):
        if not 1 <= target <= min(grid):
            raise UserError(f"target={target}: give 1 to {min(grid)} patches along each side of the {height} x {width}")
        rows, columns = ([((2 * i + 1) * side - 1) // (2 * target) for i in range(target)] for side in grid)
        return [(row, column) for row in rows for column in columns]
    try:
        pairs: Any = [target] if np.ndim(target) == 1 else target
        chosen = [(index(row), index(column)) for row, column in pairs]
    except (TypeError, ValueError) as error:
        raise UserError(f"target={target}: give (row, column) of a patch, a list of these, or one number") from error
    for row, column in chosen:
        if not (0 <= row < height and 0 <= column < width):
            raise UserError(
                f"target=({row}, {column}) lies outside of the grid of {height} x {width} patches: give a row from 0 "
                f"to {height - 1} and a column from 0 to {width - 1}"
            )
    return chosen

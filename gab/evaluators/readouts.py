"""What a receptive field is the field of: one number per patch of a network's features, differentiable to the images.

The paper's readout is the mean over channels of the last features. After a LayerNorm that is another functional of the
network than before it: the norm takes the mean out, and what is left depends on the norm's own weights. So there are
three readouts, and each says in words what it measures.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from timm.layers import Mlp
from timm.models.vision_transformer import VisionTransformer as TimmViT
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import Tensor, nn

from gab.errors import Unmeasurable, UserError, check_choice
from gab.models.gaussian import Grid
from gab.models.vit import VisionTransformer
from gab.random import fold_in, hash_key, mix

READOUTS = ("mean", "random", "pre_norm")
LISTS = re.compile(r"(.*\.)?(blocks|layer\d+)\.\d+")  # where networks keep the layers that a number counts
SPREAD = 1e-5  # relative, of a norm's weights; below it their mean over channels is a constant to float32
BARELY = 1e-3  # LayerScale below which a block's branches hardly add to the tokens


class Probe:
    """A network, one of its layers and a readout.

    Args:
        model: any network; timm's and ours know where their features end.
        layer: whose output is read: the name of a module, or its number among the blocks, from 0 or from the end;
            None: the network's last features (`forward_features`), as in the paper.
        readout: `mean` over channels (the paper's), `random`: a fixed projection by signs, or `pre_norm`: the mean over
            channels of what goes into the last norm.

    Raises:
        UserError: there is no such layer or readout.
    """

    def __init__(self, model: nn.Module, layer: str | int | None = None, readout: str = "mean"):
        check_choice("readout", readout, READOUTS)
        if readout == "pre_norm" and layer is not None:
            raise UserError("readout=pre_norm is of the last features: leave out layer, or take readout=mean")
        self.model, self.readout = model, readout
        self.name = layer_name(model, layer)
        norm = last_norm(model, self.name)
        read_input = readout == "pre_norm" and norm is not None
        self.module = norm if read_input else (None if self.name is None else model.get_submodule(self.name))
        self.read_input = read_input
        self.measured = self._in_words(norm)
        self.norm = norm

    def require_signal(self) -> None:
        """Raise Unmeasurable where the readout would measure round-off."""
        norm = self.norm
        if norm is not None and self.readout == "mean" and is_even(norm):
            raise Unmeasurable(
                f"{self.name or 'the network'} ends in a LayerNorm whose weights are all alike, as in an untrained "
                "network: the mean over channels is a constant then and its gradient round-off; set readout=pre_norm "
                "or readout=random"
            )

    def _in_words(self, norm: nn.Module | None) -> str:
        """`channel mean, after LayerNorm` and so on: functionals that must not be mixed in one table."""
        kind = "random signs" if self.readout == "random" else "channel mean"
        place = f" of {self.name}" if self.name is not None else ""
        return f"{kind}{place}, {'after LayerNorm' if norm is not None and not self.read_input else 'not normalised'}"

    def __call__(self, images: Tensor) -> Tensor:
        """The readout of every patch.

        Args:
            images: the network's input (B, 3, H, W), which may require grad.

        Returns:
            (B, h, w), differentiable to `images` alone if the parameters are frozen.

        Raises:
            UserError: the layer is not reached, or its output shows no grid of patches.
        """
        return self.project(self.grid_of(self._features(images), images))

    @contextmanager
    def only(self, targets: list[Grid], grid: Grid) -> Iterator[None]:
        """Within, a plain ViT computes its last MLP for a single target alone; its readout of other patches is void."""
        mlp = last_mlp(self.model) if self.name is None and len(targets) == 1 else None
        if mlp is None:
            yield
            return
        [(row, column)] = targets
        place = int(getattr(self.model, "num_prefix_tokens", 0)) + row * grid[1] + column
        # The one token is added to all of them, in the residual.
        handle = mlp.register_forward_pre_hook(lambda _, given: (given[0][:, place : place + 1], *given[1:]))
        try:
            yield
        finally:
            handle.remove()

    def _features(self, images: Tensor) -> Tensor:
        """The output of the layer, or the input of the last norm; nothing behind it is computed."""
        forward = getattr(self.model, "forward_features", self.model)
        if self.module is None:
            return _first_tensor(forward(images))
        with catch(self.module, self.read_input) as caught:
            try:
                forward(images)
            except _Reached:
                return _first_tensor(caught[0])
            if forward is not self.model:  # a part of the head
                try:
                    self.model(images)
                except _Reached:
                    return _first_tensor(caught[0])
        raise UserError(f"layer={self.name} takes no part in a forward pass: choose another module of the network")

    def grid_of(self, features: Tensor, images: Tensor) -> Tensor:
        """Tokens (B, prefix + h w, C), or maps (B, C, h, w) or (B, h, w, C), to (B, h, w, C).

        A grid that nobody states must have the shape of the images, and tokens more than one patch: what has not is
        something else, such as a window or a class token. Tokens inside of a network that has to put them back into
        rows (Hiera's `reroll`) stand in no grid.
        """
        if len(features) == len(images):
            if features.ndim == 4:
                for maps in self._layouts(features):
                    if _looks_like(maps.shape[1:3], images, rounded=True):
                        return maps
            if features.ndim == 3 and (self.name is None or not hasattr(self.model, "reroll")):
                for (height, width), prefix in _grids(self.model, features.shape[1], images):
                    if height * width + prefix == features.shape[1]:
                        return features[:, prefix:].unflatten(1, (height, width))
        what, other = f"layer={self.name}", "another layer"
        if self.name is None:
            what, other = "the network", "a layer, such as layer=-1 for the last block"
        raise UserError(
            f"the output of {what} is of shape {tuple(features.shape)}, in which there is no grid of patches: choose "
            f"{other}"
        )

    def _layouts(self, maps: Tensor) -> list[Tensor]:
        """What (B, h, w, C) may be of maps of unknown layout, first as the network says."""
        found = [maps.permute(0, 2, 3, 1), maps]
        stem = self.module is not None and self.module is _stem(self.model)
        last = getattr(self.model, "output_fmt", "NCHW") == "NHWC" and not stem
        return found[::-1] if last else found

    def project(self, features: Tensor) -> Tensor:
        """(..., C) to (...): the mean over channels, or over channels with fixed signs."""
        if self.readout != "random":
            return features.mean(-1)
        return features @ signs(features.shape[-1]).to(features) / features.shape[-1]


def signs(channels: int) -> Tensor:
    """A sign (C,) for every channel, the same in all networks and on all machines."""
    keys = fold_in(hash_key("receptive field"), torch.arange(channels))
    return 1.0 - 2.0 * (mix(keys) & 1)


def layer_name(model: nn.Module, layer: str | int | None) -> str | None:
    """The name of the module that `layer` means; raises UserError if there is none."""
    names = dict(model.named_modules())
    if layer is None or (isinstance(layer, str) and layer in names and layer):
        return layer
    blocks = [name for name in names if LISTS.fullmatch(name)]
    blocks = [name for name in blocks if not any(name.startswith(f"{other}.") for other in blocks)]
    if isinstance(layer, int) and -len(blocks) <= layer < len(blocks):
        return blocks[layer]
    known = f"{blocks[0]} to {blocks[-1]}, numbers 0 to {len(blocks) - 1}" if blocks else "model.named_modules()"
    raise UserError(f"layer={layer} is no module of the network: give the name or the number of one ({known})")


def last_norm(model: nn.Module, name: str | None) -> nn.Module | None:
    """The LayerNorm that makes the features: that of `forward_features`, or the module `name` itself."""
    module = getattr(model, "norm", None) if name is None else model.get_submodule(name)
    return module if isinstance(module, nn.LayerNorm) else None


def last_mlp(model: Any) -> nn.Module | None:
    """The last MLP of a plain ViT, behind whose attention no token knows of another; None for other networks."""
    plain = [kind.forward_features for kind in (VisionTransformer, TimmViT, VisionTransformerRelPos)]
    if getattr(type(model), "forward_features", None) not in plain:
        return None
    mlp = getattr(model.blocks[-1], "mlp", None)
    return mlp if isinstance(mlp, Mlp) else None


def is_even(norm: Any) -> bool:
    """Whether a norm weights all channels alike, so that the mean over them does not depend on its input."""
    if norm.weight is None:
        return True
    weight = norm.weight.detach().double()
    return bool(weight.std(correction=0) <= SPREAD * weight.abs().mean())


def barely_scaled(model: nn.Module) -> float | None:
    """The largest mean LayerScale of a block where all are tiny, as in an untrained network; None otherwise."""
    scales = [
        parameter.detach().abs().mean().item()
        for name, parameter in model.named_parameters()
        if re.search(r"(^|\.)(gamma\w*|ls\d)$", name)
    ]
    return max(scales) if scales and max(scales) < BARELY else None


class _Reached(Exception):
    """Ends a forward pass where its features are known."""


@contextmanager
def catch(module: nn.Module, its_input: bool) -> Iterator[list[Any]]:
    """Within, a forward pass ends in `_Reached` at `module`, whose output (or input) is put into the list."""
    caught: list[Any] = []

    def keep(value: Any) -> None:
        caught.append(value)
        raise _Reached

    if its_input:
        handle = module.register_forward_pre_hook(lambda _, given: keep(given))
    else:
        handle = module.register_forward_hook(lambda _, __, output: keep(output))
    try:
        yield caught
    finally:
        handle.remove()


def _first_tensor(output: Any) -> Tensor:
    while isinstance(output, (tuple, list)) and output:
        output = output[0]
    if isinstance(output, Tensor):
        return output
    raise UserError(f"the layer gives a {type(output).__name__}, not features: choose another layer")


def _stem(model: nn.Module) -> nn.Module | None:
    """The convolution of a patch embedding, whose maps are (B, C, h, w) in every network."""
    return getattr(getattr(model, "patch_embed", None), "proj", None)


def _looks_like(grid: Sequence[int], images: Tensor, rounded: bool) -> bool:
    """Whether a grid (h, w) has the shape of the images; `rounded`: to a patch, as convolutions with padding do."""
    height, width = images.shape[-2:]
    return abs(grid[0] * width - grid[1] * height) <= (max(height, width) if rounded else 0)


def _grids(model: nn.Module, tokens: int, images: Tensor) -> Iterator[tuple[Grid, int]]:
    """What `tokens` may be, most certain first: (h, w) and how many tokens stand before the patches."""
    prefix = int(getattr(model, "num_prefix_tokens", 0))
    embed: Any = getattr(model, "patch_embed", None)
    if hasattr(embed, "dynamic_feat_size"):
        grid = tuple(embed.dynamic_feat_size(tuple(images.shape[-2:])))
        yield grid, prefix
        yield grid, 0
    for before in (prefix, 0):
        patches = max(tokens - before, 0)
        height = round((patches * images.shape[-2] / images.shape[-1]) ** 0.5)
        if patches > 1 and height and _looks_like(grid := (height, patches // height), images, rounded=False):
            yield grid, before

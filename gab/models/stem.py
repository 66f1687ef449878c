"""Stems that are more than one patch convolution: the bookkeeping of timm's PatchEmbed around them."""

from collections.abc import Sequence

from timm.layers import to_2tuple
from torch import Tensor, nn

from gab.errors import UserError
from gab.models.gaussian import Grid


def to_tokens(x: Tensor) -> Tensor:
    """A map (B, C, h, w) to tokens (B, h w, C), row-major."""
    return x.flatten(2).transpose(1, 2)


def to_map(x: Tensor, grid: Sequence[int]) -> Tensor:
    """Tokens (B, h w, C), row-major, to a map (B, C, h, w)."""
    return x.transpose(1, 2).unflatten(2, grid)


class Stem(nn.Module):
    """From images to a grid of tokens `reduction` times smaller; a subclass has the layers and `forward`.

    Args:
        img_size: (height, width) in pixels.
        reduction: pixels per token along each axis.

    Raises:
        UserError: images that do not reduce evenly.
    """

    img_size: tuple[int, int]
    grid_size: Grid

    def __init__(self, img_size: tuple[int, int], reduction: int):
        super().__init__()
        self.patch_size = to_2tuple(reduction)
        self.set_input_size(img_size)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) to tokens (B, N, C), row-major."""
        raise NotImplementedError

    def set_input_size(self, img_size: tuple[int, int] | None = None, patch_size: object = None) -> None:
        """Moves to images of another size; how many pixels make a token is fixed."""
        if patch_size is not None and to_2tuple(patch_size) != self.patch_size:
            raise UserError(f"This network makes tokens of {self.patch_size[0]} pixels; its patch_size cannot change.")
        if img_size is None:
            return
        if any(side % self.patch_size[0] or side < self.patch_size[0] for side in img_size):
            raise UserError(
                f"Images of {img_size[0]} x {img_size[1]} do not reduce evenly by {self.patch_size[0]}: change the "
                "image size to a multiple of it."
            )
        self.img_size = img_size
        self.grid_size = self.dynamic_feat_size(img_size)

    def feat_ratio(self, as_scalar: bool = True) -> int | tuple[int, int]:
        """Pixels per token."""
        return self.patch_size[0] if as_scalar else self.patch_size

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> Grid:
        """Rows and columns of tokens for images of `img_size`."""
        return img_size[0] // self.patch_size[0], img_size[1] // self.patch_size[1]

    def check_size(self, x: Tensor) -> None:
        """Raises UserError for images of another size than the network is made for."""
        if tuple(x.shape[2:]) != self.img_size:
            raise UserError(
                f"Images of {x.shape[2]} x {x.shape[3]} for a network made for {self.img_size[0]} x "
                f"{self.img_size[1]}: give it img_size, or call set_input_size."
            )

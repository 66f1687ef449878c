"""What every network asks of its configuration, said in a sentence."""

from typing import Any

from gab.errors import UserError

COUNTS = ("patch_size", "embed_dim", "depth", "num_heads", "depths", "window_size", "token_width")
RATES = ("drop_path_rate", "drop_rate", "proj_drop_rate", "attn_drop_rate")


def check_numbers(cfg: Any) -> None:
    """Raises UserError for a count below 1 or a dropout rate outside [0, 1)."""
    for name in COUNTS:
        value = getattr(cfg, name, 1)
        if any(count < 1 for count in (value if isinstance(value, list | tuple) else [value])):
            raise UserError(f"model.{name} is {value}; it must be at least 1.")
    for name in RATES:
        value = getattr(cfg, name, 0.0)
        if not 0 <= value < 1:
            raise UserError(f"model.{name} is {value}; a rate is at least 0 and below 1.")


def check_patches(img_size: tuple[int, int], patch_size: int) -> None:
    """Raises UserError for images (height, width) that do not divide into patches."""
    if any(side % patch_size or side < patch_size for side in img_size):
        raise UserError(
            f"Images of {img_size[0]} x {img_size[1]} do not divide into patches of model.patch_size={patch_size}; "
            "change the image size or the patch size."
        )


def check_reduction(cfg: Any, reduction: int) -> None:
    """Raises UserError for a patch size that is not that of a stem which is made for one."""
    if cfg.patch_size != reduction:
        raise UserError(
            f"The stem of this network makes tokens of {reduction} pixels: set model.patch_size={reduction}, not "
            f"{cfg.patch_size}."
        )

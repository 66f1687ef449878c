"""Settings of the augmentation that cannot be."""

from gab.augment.randaugment import OPERATIONS
from gab.config import AugmentConfig, RandAugmentConfig
from gab.errors import UserError, check_at_least, check_choice

_CHOICES = {"interpolation": ("bilinear", "bicubic", "random"), "mix_mode": ("batch", "pair", "element")}
_SHARES = ("erase_prob", "mix_prob", "switch_prob", "label_smoothing", "randaugment.prob")
_AMOUNTS = (
    *("mixup", "cutmix", "mix_epochs", "color_jitter", "rotation"),
    *("randaugment.layers", "randaugment.magnitude", "randaugment.magnitude_std", "randaugment.magnitude_max"),
)


def check(config: AugmentConfig) -> None:
    """Refuse what cannot be.

    Raises:
        UserError: the first of it, with what would fix it.
    """
    values = vars(config) | {f"randaugment.{key}": value for key, value in vars(config.randaugment).items()}
    for key, known in _CHOICES.items():
        check_choice(f"augment.{key}", values[key], known)
    for key in _SHARES:
        if not 0 <= values[key] <= 1:
            raise UserError(f"augment.{key}={values[key]:g}: give a share from 0 to 1")
    for key in _AMOUNTS:
        check_at_least(f"augment.{key}", values[key], 0)
    if config.mixing_group % 2 and (config.mixup > 0 or config.cutmix > 0):
        raise UserError(
            f"augment.mixing_group={config.mixing_group}: an odd group leaves an image without a partner, give an even "
            "number (augment.mixup=0 augment.cutmix=0 mixes nothing)"
        )
    if config.three_augment and config.randaugment.layers:
        raise UserError(
            "augment.three_augment and augment.randaugment.layers take each other's place: set three_augment=false "
            "or layers=0"
        )
    _check_weighted(config.randaugment)


def _check_weighted(config: RandAugmentConfig) -> None:
    """timm's weights are for the increasing operations, and take none twice."""
    if not (config.weighted and config.layers):
        return
    if not config.increasing:
        raise UserError(
            "augment.randaugment.weighted=true chooses among the increasing operations: set "
            "augment.randaugment.increasing=true"
        )
    if config.layers > len(OPERATIONS):
        raise UserError(
            f"augment.randaugment.layers={config.layers}: weighted=true takes no operation twice, and there are "
            f"{len(OPERATIONS)}"
        )

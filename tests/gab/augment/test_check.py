import re

import pytest

from gab.augment.check import check
from gab.config import AugmentConfig, RandAugmentConfig
from gab.errors import UserError

REFUSED = {
    "interpolation=nearest is unknown: choose one of bilinear": {"interpolation": "nearest"},
    "mix_mode=elem is unknown: choose one of batch, pair, element": {"mix_mode": "elem"},
    "erase_prob=1.5: give a share": {"erase_prob": 1.5},
    "randaugment.prob=-0.1: give a share": {"randaugment": RandAugmentConfig(prob=-0.1)},
    "cutmix=-1: give a number of at least 0": {"cutmix": -1.0},
    "mix_epochs=-3: give a number of at least 0": {"mix_epochs": -3},
    "mixing_group=1: an odd group": {"mixing_group": 1, "cutmix": 0.0},
    "mixing_group=3: an odd group": {"mixing_group": 3, "mixup": 0.0},
    "randaugment.layers=-1: give a number": {"randaugment": RandAugmentConfig(layers=-1)},
    "randaugment.magnitude_max=-2: give a number": {"randaugment": RandAugmentConfig(magnitude_max=-2)},
    "three_augment and augment.randaugment.layers take each other's place": {
        "three_augment": True,
        "randaugment": RandAugmentConfig(layers=2),
    },
    "weighted=true chooses among the increasing": {
        "randaugment": RandAugmentConfig(layers=2, weighted=True, increasing=False)
    },
    "layers=16: weighted=true takes no operation twice": {"randaugment": RandAugmentConfig(layers=16, weighted=True)},
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_cannot_be_is_refused(said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        check(AugmentConfig(**REFUSED[said]))


def test_the_rest_is_taken() -> None:
    check(AugmentConfig())
    check(AugmentConfig(mixing_group=1, mixup=0.0, cutmix=0.0))
    check(AugmentConfig(mix_mode="pair", mix_epochs=0, randaugment=RandAugmentConfig(layers=15, weighted=True)))
    check(AugmentConfig(randaugment=RandAugmentConfig(magnitude_std=101, magnitude_max=30)))

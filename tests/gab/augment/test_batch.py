import torch

from gab.augment import Augment, normalize
from gab.config import AugmentConfig

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.5]
CPU = torch.device("cpu")


def augment(**changes) -> Augment:
    return Augment(AugmentConfig(mixing_group=4, **changes), seed=0, mean=MEAN, std=STD, device=CPU)


def batch(count: int = 24):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return images, torch.arange(count) % 10, torch.randperm(1000, generator=generator)[:count]


def test_normalize_as_torchvision() -> None:
    from torchvision.transforms.v2 import functional as F

    images = batch()[0]
    expected = F.normalize(F.to_dtype(images, torch.float32, scale=True), MEAN, STD)
    torch.testing.assert_close(normalize(images, torch.tensor(MEAN), torch.tensor(STD)), expected)


def test_any_split_into_whole_groups_gives_the_same() -> None:
    columns = batch()
    whole, targets = augment()(*columns, epoch=1, step=7, first=0)
    parts = []
    for start, size in ((0, 8), (8, 4), (12, 12)):
        part = (column[start : start + size] for column in columns)
        parts.append(augment()(*part, epoch=1, step=7, first=start))
    torch.testing.assert_close(torch.cat([images for images, _ in parts]), whole, rtol=0, atol=0)
    for name in targets._fields:
        assert torch.equal(torch.cat([getattr(t, name) for _, t in parts]), getattr(targets, name))
    assert torch.equal(targets.partners[:4], columns[1][[3, 2, 1, 0]])


def test_groups_are_numbered_in_the_global_batch() -> None:
    columns = batch(8)
    first = augment()(*columns, epoch=1, step=7, first=0)[1].lam
    second = augment()(*columns, epoch=1, step=7, first=8)[1].lam
    assert not torch.equal(first, second)


def test_switched_off_only_normalises() -> None:
    images, labels, indices = batch()
    off = augment(mixup=0.0, cutmix=0.0, erase_prob=0.0)
    x, targets = off(images, labels, indices, epoch=0, step=0, first=0)
    assert torch.equal(x, normalize(images, off.mean, off.std))
    assert torch.equal(targets.labels, labels)
    assert (targets.lam == 1).all()

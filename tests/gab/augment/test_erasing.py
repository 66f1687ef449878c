import numpy as np
import pytest
import torch
from scipy import stats
from timm.data.random_erasing import RandomErasing

from gab.augment.erasing import Boxes, draw_boxes, erase

SETTINGS = {"seed": 0, "epoch": 2, "size": 32, "prob": 0.25}


def erased(images: torch.Tensor, drawn: Boxes) -> torch.Tensor:
    """In a copy."""
    return erase(images.clone(), *drawn)


def made(rows: torch.Tensor, boxes: torch.Tensor, keys: torch.Tensor) -> Boxes:
    return Boxes(rows, boxes, keys, sum((bottom - top) * (right - left) for top, bottom, left, right in boxes.tolist()))


def test_a_sample_does_not_know_its_batch() -> None:
    indices = torch.randperm(5000)[:96]
    images = torch.zeros(96, 3, 32, 32)
    whole = erased(images, draw_boxes(indices, **SETTINGS))
    parts = [
        erased(part, draw_boxes(own, **SETTINGS))
        for part, own in zip(images.split([40, 8, 48]), indices.split([40, 8, 48]))
    ]
    assert torch.equal(whole, torch.cat(parts))
    assert (whole != 0).flatten(1).any(1).float().mean() > 0.1
    for change in ({"epoch": 3}, {"seed": 1}):
        assert not torch.equal(whole, erased(images, draw_boxes(indices, **{**SETTINGS, **change})))


def test_nothing_to_erase() -> None:
    images = torch.randn(4, 3, 8, 8)
    drawn = draw_boxes(torch.arange(4), seed=0, epoch=0, size=8, prob=0.0)
    assert drawn.pixels == 0
    assert torch.equal(erased(images, drawn), images)


def test_only_the_boxes_are_noise() -> None:
    images = torch.full((4, 3, 16, 16), 7.0)
    boxes = torch.tensor([[2, 9, 4, 16], [0, 1, 15, 16]])
    changed = erased(images, made(torch.tensor([1, 3]), boxes, torch.tensor([99, 7]))) != 7
    expected = torch.zeros_like(changed)
    expected[1, :, 2:9, 4:16] = True
    expected[3, :, 0, 15] = True
    assert torch.equal(changed, expected)


def test_noise_belongs_to_the_pixel() -> None:
    """It does not depend on where the box begins, nor on other boxes."""
    images, keys = torch.zeros(2, 3, 16, 16), torch.tensor([5, 6])
    everywhere = erased(images, made(torch.arange(2), torch.tensor([[0, 16, 0, 16]] * 2), keys))
    box = erased(images, made(torch.tensor([1]), torch.tensor([[2, 9, 4, 16]]), keys[1:]))
    assert torch.equal(box[1, :, 2:9, 4:16], everywhere[1, :, 2:9, 4:16])


def test_compiles_in_one_piece() -> None:
    drawn = draw_boxes(torch.arange(16), **SETTINGS)
    torch.compiler.reset()
    compiled = torch.compile(erase, fullgraph=True, backend="eager")
    assert torch.equal(compiled(torch.zeros(16, 3, 32, 32), *drawn), erased(torch.zeros(16, 3, 32, 32), drawn))


def test_noise_is_standard_normal() -> None:
    keys = torch.arange(6)
    box = torch.tensor([[0, 64, 0, 64]]).expand(6, 4)
    noise = erased(torch.zeros(6, 3, 64, 64), made(torch.arange(6), box, keys))
    for sample in noise:
        assert stats.kstest(sample.flatten().numpy(), "norm").pvalue > 1e-3
    correlations = np.corrcoef(noise.flatten(0, 1).flatten(1).numpy())  # of all samples and channels
    assert np.abs(correlations - np.eye(18)).max() < 5 / 64


@pytest.fixture(scope="module")
def timm_boxes() -> np.ndarray:
    """Height, width, top, left of what timm erases."""
    import random

    random.seed(0)
    eraser = RandomErasing(probability=1.0, mode="pixel", device="cpu")
    boxes = []
    for _ in range(3000):
        image = torch.full((1, 32, 32), 99.0)
        rows, columns = torch.nonzero(eraser(image)[0] != 99, as_tuple=True)
        boxes.append((rows.max() - rows.min() + 1, columns.max() - columns.min() + 1, rows.min(), columns.min()))
    return np.array(boxes)


def test_rate() -> None:
    drawn = draw_boxes(torch.arange(20_000), **SETTINGS)
    assert abs(len(drawn.rows) / 20_000 - 0.25) < 0.01
    assert len(drawn.rows) == len(drawn.boxes) == len(drawn.keys) == len(drawn.keys.unique())


def test_boxes_as_timm_draws_them(timm_boxes: np.ndarray) -> None:
    drawn = draw_boxes(torch.arange(3000), **{**SETTINGS, "prob": 1.0})
    top, bottom, left, right = drawn.boxes.T.numpy()
    ours = np.stack([bottom - top, right - left, top, left], axis=1)
    for column, reference in zip(ours.T, timm_boxes.T):
        assert stats.ks_2samp(column, reference).pvalue > 1e-3
    areas, reference = ours[:, :2].prod(1), timm_boxes[:, :2].prod(1)
    assert stats.ks_2samp(areas, reference).pvalue > 1e-3
    assert (bottom <= 32).all()
    assert (right <= 32).all()

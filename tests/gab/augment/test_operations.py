"""Every operation against Pillow's, called as timm calls it, on the same images with the same arguments."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from gab.augment import filters, moves
from gab.augment.operations import KINDS, Layer, Op, apply, plan
from tests.gab.augment.pillow import CASES, FILL, by_timm

MOVES = (Op.ROTATE, Op.SHEAR_X, Op.SHEAR_Y, Op.TRANSLATE_X, Op.TRANSLATE_Y)


def layer(op: Op, args: list[float], taps: int, fill: tuple[int, ...] = FILL) -> Layer:
    count = len(args)
    arg = torch.tensor(args, dtype=torch.float64)
    return Layer(torch.full((count,), op), arg, torch.full((count,), taps), torch.tensor(fill).byte())


def do(layer: Layer, images: Tensor) -> None:
    """In place."""
    apply(images, plan(layer, images.shape[-1]))


def differences(op: Op, images: Tensor, taps: int) -> np.ndarray:
    """Grey levels between ours and timm's, for all images and arguments."""
    args = [arg for arg in CASES[op][1] for _ in images]
    batch = images.repeat(len(CASES[op][1]), 1, 1, 1)
    done = batch.clone()
    do(layer(op, args, taps), done)
    ours = done.permute(0, 2, 3, 1).numpy().astype(int)
    theirs = np.stack([by_timm(image, op, arg, taps) for image, arg in zip(batch, args, strict=True)])
    return np.abs(ours - theirs)


@pytest.mark.parametrize("size", [32, 97])
@pytest.mark.parametrize("op", [op for op in CASES if op not in MOVES])
def test_greys_as_timm(op: Op, size: int, photos: Callable[[int], Tensor]) -> None:
    """Equal."""
    assert differences(op, photos(size), taps=2).max() == 0


@pytest.mark.parametrize("size", [32, 97])
@pytest.mark.parametrize("taps", [2, 4])
@pytest.mark.parametrize("op", MOVES)
def test_moves_as_timm(op: Op, taps: int, size: int, photos: Callable[[int], Tensor]) -> None:
    """At most one level, in at most 1 of 300 values: Pillow cuts fractions off, and what is just below an integer
    in its double precision may be above it in ours."""
    difference = differences(op, photos(size), taps)
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 1 / 300


@pytest.mark.parametrize("size", [32, 97])
def test_nearest_rotation_as_pillow(size: int, photos: Callable[[int], Tensor]) -> None:
    assert differences(Op.ROTATE, photos(size), taps=1).max() == 0


def test_no_bits_are_black(photos: Callable[[int], Tensor]) -> None:
    """As in the versions of Pillow that the papers used; newer ones refuse it."""
    images = photos(32)[:2]
    do(layer(Op.POSTERIZE, [0, 0], 2), images)
    assert (images == 0).all()


def test_what_nothing_is_done_to_stays(photos: Callable[[int], Tensor]) -> None:
    images, kept = photos(32), photos(32)
    do(layer(Op.KEEP, [0.0] * len(images), 2), images)
    assert torch.equal(images, kept)


def test_neighbours_do_not_matter(photos: Callable[[int], Tensor]) -> None:
    """All operations in one batch, in any order, as each alone; every image keeps its place and its argument."""
    some = [(op, arg, taps) for op in CASES for arg in CASES[op][1][:2] for taps in ((2, 4) if op in MOVES else (2,))]
    random = np.random.default_rng(0)
    images = photos(32)[torch.from_numpy(random.integers(0, 6, len(some)))]
    types = torch.int64, torch.float64, torch.int64
    ops, args, taps = (torch.tensor(column, dtype=kind) for column, kind in zip(zip(*some, strict=True), types))
    order = torch.from_numpy(random.permutation(len(some)))
    together = images[order]
    whole = Layer(ops[order], args[order], taps[order], torch.tensor(FILL).byte())
    do(whole, together)
    for place, number in enumerate(order.tolist()):
        alone = images[number : number + 1].clone()
        do(layer(Op(some[number][0]), [some[number][1]], some[number][2]), alone)
        assert torch.equal(alone[0], together[place]), some[number]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.ops[0].name}-{kind.taps}")
def test_compiles_in_one_piece(kind, photos: Callable[[int], Tensor]) -> None:
    images = photos(32)
    op, arg = torch.full((len(images),), kind.ops[0]), torch.linspace(0.1, 0.4, len(images)).double()
    needs = kind.prepare(op, arg, 32) + ((torch.tensor(FILL).byte(), kind.taps) if kind.taps else ())
    torch.compiler.reset()
    compiled = torch.compile(kind.run, fullgraph=True, backend="eager")
    assert torch.equal(compiled(images, *needs), kind.run(images, *needs))


def test_bicubic_kernel_has_weight_one() -> None:
    fraction = torch.linspace(0, 1, 11).double()
    for taps in (2, 4):
        weights = torch.stack([weight for _, weight in moves._weights(fraction, taps)])
        torch.testing.assert_close(weights.sum(0), torch.ones(11).double())


@pytest.mark.parametrize("sigma", [0.3, 1.0, 1.5, 2.4])
def test_boxes_have_the_variance_of_the_gaussian(sigma: float) -> None:
    middle, near, far = (float(weight) / 2**24 for weight in filters.box(torch.tensor([sigma])))
    assert middle + 2 * near + 2 * far == pytest.approx(1, abs=1e-6)
    assert 3 * (2 * near + 8 * far) == pytest.approx(sigma**2, rel=1e-5)

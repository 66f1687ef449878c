"""What can be done to one image, and how a batch does another thing to each of its images.

Images whose operations work alike go through together, so that a batch takes a fixed number of tensor operations. Which
they are is known on the CPU, where operations are drawn and prepared: the device only does them, and is never waited
for.
"""

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from gab.augment import filters, moves, tables


class Op(IntEnum):
    """An operation on an image; what its argument means stands behind it."""

    KEEP = 0
    AUTO_CONTRAST = 1
    EQUALIZE = 2
    INVERT = 3
    ROTATE = 4  # degrees, counter-clockwise
    POSTERIZE = 5  # bits that are kept
    SOLARIZE = 6  # grey level from which on levels are inverted
    SOLARIZE_ADD = 7  # to levels below 128
    COLOR = 8  # factor: 0 is grey, 1 changes nothing; likewise the next three
    CONTRAST = 9
    BRIGHTNESS = 10
    SHARPNESS = 11
    SHEAR_X = 12  # pixels per line; pixels come from the right (from below), so that the image goes to the left (up)
    SHEAR_Y = 13
    TRANSLATE_X = 14  # share of the side, likewise
    TRANSLATE_Y = 15
    BLUR = 16  # standard deviation in pixels, at most 2.4


class Layer(NamedTuple):
    """One operation for every image of a batch, on the CPU."""

    op: Tensor  # (B,) int64, of Op
    arg: Tensor  # (B,) float64
    taps: Tensor  # (B,) int64, of what moves pixels: 1 nearest, 2 bilinear, 4 bicubic
    fill: Tensor  # (3,) uint8: what moves in from outside


class Work(NamedTuple):
    """What one kind of operations does in a layer, and to which images of the batch."""

    kind: int  # place in KINDS
    rows: Tensor  # (R,) int64
    needs: tuple[Tensor, ...]  # what it is told of these images


class Kind(NamedTuple):
    """Operations that go through together: which, what the CPU prepares, and what the device does with it."""

    ops: tuple[Op, ...]
    prepare: Callable[[Tensor, Tensor, int], tuple[Tensor, ...]]  # of op, arg and size
    run: Callable[..., Tensor]  # of uint8 images (R, 3, S, S) and what was prepared
    taps: int = 0  # of what moves pixels: only those, and it gets `fill` and them too


def _nothing(op: Tensor, arg: Tensor, size: int) -> tuple[Tensor, ...]:
    return ()


def _argument(op: Tensor, arg: Tensor, size: int) -> tuple[Tensor, ...]:
    return (arg.float(),)


_CONSTANT = {
    Op.INVERT: tables.invert,
    Op.POSTERIZE: tables.posterize,
    Op.SOLARIZE: tables.solarize,
    Op.SOLARIZE_ADD: tables.solarize_add,
    Op.BRIGHTNESS: tables.brightness,
}


def _tables(op: Tensor, arg: Tensor, size: int) -> tuple[Tensor, ...]:
    """Look-up tables of operations that do not depend on the image: uint8 (R, 1, 256)."""
    made = torch.empty(len(op), 1, 256, dtype=torch.uint8)
    for name, make in _CONSTANT.items():
        made[op == name] = make(arg[op == name])
    return (made,)


def _lines(op: Tensor, arg: Tensor, size: int) -> tuple[Tensor, ...]:
    shears = (op == Op.SHEAR_X) | (op == Op.SHEAR_Y)
    return moves.lines(torch.where(shears, arg, 0), torch.where(shears, 0, arg * size), size)


def _turns(op: Tensor, arg: Tensor, size: int) -> tuple[Tensor, ...]:
    return moves.turns(arg, size)


def _turns_nearest(op: Tensor, arg: Tensor, size: int) -> tuple[Tensor, ...]:
    return moves.turns_nearest(arg, size)


def _box(op: Tensor, arg: Tensor, size: int) -> tuple[Tensor, ...]:
    return filters.box(arg)


def _auto_contrast(images: Tensor) -> Tensor:
    return tables.look_up(images, tables.auto_contrast(images))


def _equalize(images: Tensor) -> Tensor:
    return tables.look_up(images, tables.equalize(images))


def _contrast(images: Tensor, factor: Tensor) -> Tensor:
    return tables.look_up(images, tables.contrast(filters.grey(images), factor))


def _color(images: Tensor, factor: Tensor) -> Tensor:
    return filters.blend(filters.grey(images)[:, None], images, factor)


def _sharpness(images: Tensor, factor: Tensor) -> Tensor:
    return filters.blend(filters.smooth(images), images, factor)


KINDS = (
    Kind(tuple(_CONSTANT), _tables, tables.look_up),
    Kind((Op.AUTO_CONTRAST,), _nothing, _auto_contrast),
    Kind((Op.EQUALIZE,), _nothing, _equalize),
    Kind((Op.CONTRAST,), _argument, _contrast),
    Kind((Op.COLOR,), _argument, _color),
    Kind((Op.SHARPNESS,), _argument, _sharpness),
    Kind((Op.BLUR,), _box, filters.blur),
    Kind((Op.ROTATE,), _turns_nearest, moves.rotate, taps=1),
    *(
        kind
        for taps in (2, 4)
        for kind in (
            Kind((Op.SHEAR_X, Op.TRANSLATE_X), _lines, moves.slide, taps),
            Kind((Op.SHEAR_Y, Op.TRANSLATE_Y), _lines, moves.slide_down, taps),
            Kind((Op.ROTATE,), _turns, moves.rotate, taps),
        )
    ),
)


def twice_if_one(rows: Tensor) -> Tensor:
    """`rows` (R, ...), or a single one as two.

    PyTorch compiles code anew for a dimension of one, however dynamic: this spares every kernel its second compilation,
    in the midst of training. A place that is written twice gets equal values, so no order of writing matters.
    """
    return rows.repeat_interleave(2, 0) if len(rows) == 1 else rows


_KEPT = -1  # instead of a kind
_KIND_OF = torch.full((len(Op), 5), _KEPT)  # operations by taps
for _number, _kind in enumerate(KINDS):
    _KIND_OF[list(_kind.ops), _kind.taps or slice(None)] = _number


def plan(layer: Layer, size: int) -> list[Work]:
    """What is to be done for `layer` to images of `size` pixels: on the CPU, the images sorted by kind."""
    kind_of = _KIND_OF[layer.op, layer.taps]
    counts = (kind_of - _KEPT).bincount(minlength=1 + len(KINDS)).tolist()
    works = []
    for number, rows in enumerate(kind_of.argsort(stable=True).split(counts), start=_KEPT):
        if number != _KEPT and len(rows):
            rows, kind = twice_if_one(rows), KINDS[number]
            needs = kind.prepare(layer.op[rows], layer.arg[rows], size)
            works.append(Work(number, rows, (*needs, layer.fill) if kind.taps else needs))
    return works


def apply(images: Tensor, works: list[Work], kinds: Sequence[Kind] = KINDS) -> None:
    """Do `works` to uint8 `images` (B, 3, S, S), in place, one after another; all lies on one device."""
    for work in works:
        kind = kinds[work.kind]
        given = (*work.needs, kind.taps) if kind.taps else work.needs
        images.index_copy_(0, work.rows, kind.run(images[work.rows], *given))

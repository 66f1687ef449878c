"""Which sample comes when, which box is cut from it, and whether it is flipped: the one place that decides.

Everything is a pure function of (seed, epoch, sample key), computed by hashing and never by carrying a random state
along. So a batch does not depend on how many workers or processes made it, an epoch can start at any step, and all
loaders cut the same boxes. Numbers come from the splitmix64 finaliser (Steele, Lea and Flood, 2014, "Fast splittable
pseudorandom number generators") on unsigned 64-bit integers, whose stream no library version can change.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data.config import CropConfig, DataConfig
from data.errors import DataError

# Columns of a crop as `draw_crops` returns it: the box in pixels, then two switches (0 or 1).
TOP, LEFT, HEIGHT, WIDTH, FLIP, BICUBIC = range(6)

ORDER, CROP = 1, 2  # separate the random numbers of an epoch by what they are for
TRIES = 10  # of torchvision's RandomResizedCrop
BICUBIC_SHARE = {"bicubic": 1.0, "bilinear": 0.0, "random": 0.5}  # of the samples, else bilinear
KINDS = ("resized", "padded")
FLIP_DRAW, BICUBIC_DRAW = 4 * TRIES, 4 * TRIES + 1  # each try uses four numbers

Hashes = NDArray[np.uint64]


def mix(x: Hashes) -> Hashes:
    """64 bits in, 64 well mixed bits out; a bijection (splitmix64). Arrays only: numpy warns of scalar overflow."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hash_of(*parts: ArrayLike) -> Hashes:
    """One hash per element of `parts`, integers that are broadcast against one another; at least one-dimensional.

    Each part is mixed before it is joined, so (1, 2) and (2, 1) are as unrelated as any two.
    """
    key = np.zeros(1, np.uint64)
    for part in parts:
        key = mix(key ^ mix(np.atleast_1d(np.asarray(part).astype(np.uint64))))
    return key


def uniform(key: Hashes, draw: int) -> NDArray[np.float64]:
    """The draw-th number in [0, 1) of the stream that belongs to each key, 53 bits."""
    return (hash_of(key, draw) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def epoch_order(num_samples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """A permutation of range(num_samples): the samples sorted by their hashes, which are distinct."""
    return np.argsort(hash_of(seed, epoch, ORDER, np.arange(num_samples)))


def repeat_samples(order: NDArray[np.int64], num_samples: int, repeats: int, batch_size: int) -> NDArray[np.int64]:
    """Sample keys of an epoch's whole batches in which the first images of `order` come `repeats` times each.

    Repeated augmentation (Hoffer et al. 2020, "Augment your batch"; DeiT's sampler): as many steps as without. Copy r
    of image i has the key i + r * num_samples, from which its crop, flip and augmentation are drawn; with one repeat,
    the keys are the indices. Each image's copies follow one another in a list that is cut into batches; a batch then
    takes all its first copies, all second ones and so on, so that copies of an image are at least
    batch_size // repeats samples apart (DeiT has them on different GPUs).
    """
    steps = len(order) // batch_size
    batches = np.arange(steps * batch_size).reshape(steps, batch_size)
    place = np.take_along_axis(batches, np.argsort(batches % repeats, axis=1, kind="stable"), axis=1).reshape(-1)
    return order[place // repeats] + num_samples * (place % repeats)


def process_share(
    order: NDArray[np.int64], batch_size: int, rank: int, processes: int, start: int = 0
) -> NDArray[np.int64]:
    """What process `rank` takes of `order` from step `start` on: a contiguous block of every global batch.

    `batch_size` is global and a multiple of `processes`. The tail that does not fill a batch is left out.
    """
    steps = len(order) // batch_size
    blocks = order[: steps * batch_size].reshape(steps, processes, batch_size // processes)
    return blocks[start:, rank].reshape(-1)


def process_shard(num_samples: int, rank: int, processes: int) -> NDArray[np.int64]:
    """The contiguous samples that process `rank` evaluates: all samples once, shards differing by at most one."""
    return np.arange(num_samples * rank // processes, num_samples * (rank + 1) // processes)


def draw_crops(
    crop: CropConfig, seed: int, epoch: int, keys: ArrayLike, heights: ArrayLike, widths: ArrayLike
) -> NDArray[np.int32]:
    """Crops of the samples `keys` whose images are `heights` by `widths` pixels: int32 (n, 6), see the columns.

    Resized: boxes as torchvision's RandomResizedCrop draws them, up to ten tries at an area and an aspect ratio
    (uniform in its logarithm), then the largest central box of a permitted ratio. Padded: windows of `crop.size`, which
    must be set, in the image with a border, as torchvision's RandomCrop draws them: they may begin before the image
    (top or left below 0) and end beyond it.
    """
    key = hash_of(seed, epoch, CROP, keys)
    heights, widths = (np.atleast_1d(np.asarray(side)).astype(np.int64) for side in (heights, widths))
    crops = np.zeros((len(key), 6), np.int32)
    crops[:, FLIP] = uniform(key, FLIP_DRAW) < crop.flip
    if crop.kind == "padded":
        assert crop.size is not None, "loaders fill it in"
        crops[:, TOP] = _window(uniform(key, 2), heights, crop)
        crops[:, LEFT] = _window(uniform(key, 3), widths, crop)
        crops[:, [HEIGHT, WIDTH]] = crop.size
        return crops
    crops[:, :4] = _central_box(heights, widths, crop.ratio)
    pending = np.arange(len(key))
    for attempt in range(TRIES):
        if not len(pending):
            break
        boxes, fits = _try_box(crop, key[pending], 4 * attempt, heights[pending], widths[pending])
        crops[pending[fits], :4] = boxes[fits]
        pending = pending[~fits]
    crops[:, BICUBIC] = uniform(key, BICUBIC_DRAW) < BICUBIC_SHARE[crop.interpolation]
    return crops


def crop_side(data: DataConfig) -> int:
    """The side of training images as a loader gives them, in pixels; raises DataError if it is too short."""
    size = data.image_size if data.crop.size is None else data.crop.size
    if size < data.image_size:
        raise DataError(
            f"data.crop.size={size} is below data.image_size={data.image_size}, to which it is cut; set at least that, "
            "or null for the same."
        )
    return size


def check_crop(crop: CropConfig) -> None:
    """Raise DataError where a setting of `crop` is impossible."""
    if crop.kind not in KINDS:
        raise DataError(f"data.crop.kind is {crop.kind!r}; set it to {' or '.join(KINDS)}.")
    if crop.padding < 0:
        raise DataError(f"data.crop.padding is {crop.padding}; set 0 pixels or more.")
    if len(crop.scale) != 2 or not 0 < crop.scale[0] <= crop.scale[1] <= 1:
        raise DataError(f"data.crop.scale is {crop.scale}; set two shares of the area, 0 < low <= high <= 1.")
    if len(crop.ratio) != 2 or not 0 < crop.ratio[0] <= crop.ratio[1]:
        raise DataError(f"data.crop.ratio is {crop.ratio}; set two ratios width / height, 0 < low <= high.")
    if not 0 <= crop.flip <= 1:
        raise DataError(f"data.crop.flip is {crop.flip}; set a probability from 0 to 1.")
    if crop.interpolation not in BICUBIC_SHARE:
        raise DataError(f"data.crop.interpolation is {crop.interpolation!r}; set it to bicubic, bilinear or random.")


def digest(keys: NDArray[np.int64], crops: NDArray[np.int32]) -> int:
    """Sum modulo 2**64 of one hash per sample of (key, top, left, height, width, flip).

    As a sum it does not depend on the order of the samples nor on how processes share them.
    """
    return int(hash_of(keys, *crops[:, :BICUBIC].T).sum(dtype=np.uint64))


def _try_box(crop, key, draw, heights, widths):
    """One try per sample: boxes (n, 4), and which of them lie inside their images."""
    area = heights * widths * (crop.scale[0] + (crop.scale[1] - crop.scale[0]) * uniform(key, draw))
    low, high = math.log(crop.ratio[0]), math.log(crop.ratio[1])
    aspect = np.exp(low + (high - low) * uniform(key, draw + 1))
    width = np.rint(np.sqrt(area * aspect)).astype(np.int64)
    height = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    fits = (width > 0) & (width <= widths) & (height > 0) & (height <= heights)
    top = (uniform(key, draw + 2) * (heights - height + 1)).astype(np.int64)
    left = (uniform(key, draw + 3) * (widths - width + 1)).astype(np.int64)
    return np.stack([top, left, height, width], axis=1), fits


def _window(draw, lengths, crop):
    """Where windows begin along an axis; in the middle where even the image with its border is not as long."""
    places = lengths + 2 * crop.padding - crop.size + 1
    return np.where(places > 0, (draw * places).astype(np.int64) - crop.padding, (lengths - crop.size) // 2)


def _central_box(heights, widths, ratio):
    """The largest central box whose width / height is within `ratio`: (n, 4)."""
    width = np.minimum(widths, np.rint(heights * ratio[1]).astype(np.int64)).clip(1)
    height = np.minimum(heights, np.rint(widths / ratio[0]).astype(np.int64)).clip(1)
    return np.stack([(heights - height) // 2, (widths - width) // 2, height, width], axis=1)

"""Cut a box and resize it as Pillow does, to the bit, in compiled code without the interpreter lock.

Pillow (Resample.c) resizes 8-bit images in two passes, one along each axis. An output value is a weighted sum of
neighbouring input values: the interpolation kernel, stretched by the ratio of the sizes when shrinking (antialiasing),
normalised to sum 1 in double precision, then rounded to 22-bit fixed point. Each pass rounds its result to 8 bits, so
the order of the passes shows in a few pixels; that of the sums does not, as they are integers.

Here both passes are one routine that sums whole rows, which is what a compiler turns into vector instructions. The pass
along rows runs on the transposed image, a few rows at a time, so that these stay in the processor's nearest cache.
"""

import contextlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import int32, njit, uint8, uint64

from data.memory import copy_bytes

PRECISION = 22  # fractional bits of a weight: 255 times the weights, summed, stays within 32 bits
STRIP = 32  # rows that are transposed at once, a multiple of 8


def kept(function: Callable[..., None]) -> Any:
    """The function compiled, and kept on disk for the next start: to compile takes some seconds."""
    compiled = njit(error_model="numpy", nogil=True)(function)
    with contextlib.suppress(RuntimeError):  # there is no place to write to
        compiled.enable_caching()
    return compiled


@kept
def resize_crop(image, top, left, height, width, bicubic, flip, out):
    """Write the box of `image`, uint8 (rows, columns, 3), into `out`, uint8 (size, size, 3), mirrored if `flip`.

    Equal in every bit to Pillow 13's `image.crop((left, top, left + width, top + height)).resize((size, size))` with
    BICUBIC or BILINEAR, followed by a mirror where `flip`. Older versions of Pillow never resize columns first.
    """
    size = out.shape[0]
    source, target = image.reshape(len(image), -1), out.reshape(size, -1)  # rows of bytes, three to a pixel
    if columns_first(height, width, size):
        short = np.empty((size, 3 * width), np.uint8)
        resize_rows(source[top : top + height, 3 * left : 3 * (left + width)], bicubic, short)
        resize_columns(short, 0, 0, width, bicubic, flip, target)
    else:
        narrow = np.empty((height, 3 * size), np.uint8)
        resize_columns(source, top, left, width, bicubic, flip, narrow)
        resize_rows(narrow, bicubic, target)


@kept
def cut_window(image, top, left, flip, out):
    """Write the window of `image` at (top, left) into `out`, uint8 (size, size, 3), mirrored if `flip`.

    It may begin before the image and end beyond it: there, `out` is black.
    """
    size = len(out)
    out[:] = 0
    for y in range(max(0, -top), min(size, image.shape[0] - top)):
        for x in range(max(0, -left), min(size, image.shape[1] - left)):
            target = size - 1 - x if flip else x
            for c in range(3):
                out[y, target, c] = image[top + y, left + x, c]


@njit(error_model="numpy", nogil=True)
def columns_first(height, width, size):
    """Whether Pillow resizes along columns before rows; found by comparing with Pillow 13.0 at thousands of sizes."""
    return height > size and height + size > 2 * width


@njit(error_model="numpy", nogil=True)
def resize_rows(image, bicubic, out):
    """Resize `image`, uint8 (rows, bytes), along its columns into `out`, uint8 (size, bytes)."""
    first, count, weights = fixed_point_weights(len(image), len(out), bicubic)
    sum_rows(image, first, count, weights, False, out)


@njit(error_model="numpy", nogil=True)
def resize_columns(image, top, left, width, bicubic, mirrored, out):
    """Resize `width` pixels from (top, left) on, in each of the rows that `out` has, to those of `out`, uint8.

    `image` and `out` have rows of bytes, three to a pixel. `mirrored`: the last pixel comes first.
    """
    size = out.shape[1] // 3
    first, count, weights = fixed_point_weights(width, size, bicubic)
    words, words_out = -(-3 * width // 8), -(-3 * size // 8)
    strip, turned = np.empty((STRIP, words), np.uint64), np.empty((8 * words, STRIP // 8), np.uint64)
    narrow, back = np.empty((8 * words_out, STRIP // 8), np.uint64), np.empty((STRIP, words_out), np.uint64)
    pixels = turned.view(np.uint8).reshape(-1)[: 3 * width * STRIP].reshape(width, -1)
    pixels_out = narrow.view(np.uint8).reshape(-1)[: 3 * size * STRIP].reshape(size, -1)
    for y in range(0, len(out), STRIP):
        rows = min(STRIP, len(out) - y)
        for r in range(rows):
            copy_bytes(image, (top + y + r) * image.shape[1] + 3 * left, 3 * width, strip, 8 * r * words)
        transpose(strip, turned)
        sum_rows(pixels, first, count, weights, mirrored, pixels_out)
        transpose(narrow, back)
        for r in range(rows):
            copy_bytes(back, 8 * r * words_out, 3 * size, out, (y + r) * 3 * size)


@njit(error_model="numpy", nogil=True)
def sum_rows(image, first, count, weights, mirrored, out):
    """Write to row o of `out` the sum of `count[o]` rows of `image` from `first[o]` on, weighted by `weights[o]`."""
    length = out.shape[1]
    sums = np.empty(length, np.int32)
    for o in range(len(out)):
        for j in range(length):
            sums[j] = 1 << (PRECISION - 1)  # one half: the shift below rounds to nearest
        i, t = first[o], 0
        while t + 4 <= count[o]:
            w0, w1, w2, w3 = weights[o, t], weights[o, t + 1], weights[o, t + 2], weights[o, t + 3]
            r0, r1, r2, r3 = image[i + t], image[i + t + 1], image[i + t + 2], image[i + t + 3]
            for j in range(length):
                sums[j] += r0[j] * w0 + r1[j] * w1 + r2[j] * w2 + r3[j] * w3
            t += 4
        while t < count[o]:
            w0, r0 = weights[o, t], image[i + t]
            for j in range(length):
                sums[j] += r0[j] * w0
            t += 1
        target = out[len(out) - 1 - o if mirrored else o]
        for j in range(length):
            target[j] = uint8(min(max(sums[j] >> int32(PRECISION), int32(0)), int32(255)))


@njit(error_model="numpy", nogil=True)
def fixed_point_weights(size_in, size_out, bicubic):
    """Weights that resize `size_in` values to `size_out`: of each output, its first input, how many, and their weights.

    int64 (size_out,) twice, and int32 (size_out, most).
    """
    scale = size_in / size_out
    stretch = max(scale, 1.0)
    support = (2.0 if bicubic else 1.0) * stretch
    first, counts = np.empty(size_out, np.int64), np.empty(size_out, np.int64)
    weights = np.empty((size_out, math.ceil(2 * support) + 1), np.int32)
    exact = np.empty(weights.shape[1])
    for o in range(size_out):
        centre = (o + 0.5) * scale
        begin = max(int(centre - support + 0.5), 0)
        count = min(int(centre + support + 0.5), size_in) - begin
        total = 0.0
        for t in range(count):
            exact[t] = kernel((t + begin - centre + 0.5) * (1.0 / stretch), bicubic)
            total += exact[t]
        for t in range(count):
            weight = exact[t] / total * (1 << PRECISION)
            weights[o, t] = int(weight - 0.5) if weight < 0 else int(weight + 0.5)
        first[o], counts[o] = begin, count
    return first, counts, weights


@njit(error_model="numpy", nogil=True)
def kernel(x, bicubic):
    """The kernel at distance `x`: Keys' cubic convolution with a = -1/2 (support 2), or the triangle (support 1)."""
    x = abs(x)
    if not bicubic:
        return max(1.0 - x, 0.0)
    if x < 1.0:
        return (1.5 * x - 2.5) * x * x + 1.0
    if x < 2.0:
        return (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    return 0.0


@njit(error_model="numpy", nogil=True)
def transpose(source, target):
    """Transpose the bytes of `source`, uint64 (8 a, b), into `target`, uint64 (8 b, a), in blocks of 8 by 8 bytes.

    Within a block, halves are exchanged, then quarters and bytes (Warren, "Hacker's Delight", section 7-3).
    """
    for a in range(target.shape[1]):
        for b in range(source.shape[1]):
            r0, r1, r2, r3 = source[8 * a, b], source[8 * a + 1, b], source[8 * a + 2, b], source[8 * a + 3, b]
            r4, r5, r6, r7 = source[8 * a + 4, b], source[8 * a + 5, b], source[8 * a + 6, b], source[8 * a + 7, b]
            (r0, r4), (r1, r5), (r2, r6), (r3, r7) = (
                swap(r0, r4, 32),
                swap(r1, r5, 32),
                swap(r2, r6, 32),
                swap(r3, r7, 32),
            )
            (r0, r2), (r1, r3), (r4, r6), (r5, r7) = (
                swap(r0, r2, 16),
                swap(r1, r3, 16),
                swap(r4, r6, 16),
                swap(r5, r7, 16),
            )
            (r0, r1), (r2, r3), (r4, r5), (r6, r7) = swap(r0, r1, 8), swap(r2, r3, 8), swap(r4, r5, 8), swap(r6, r7, 8)
            target[8 * b, a], target[8 * b + 1, a], target[8 * b + 2, a], target[8 * b + 3, a] = r0, r1, r2, r3
            target[8 * b + 4, a], target[8 * b + 5, a], target[8 * b + 6, a], target[8 * b + 7, a] = r4, r5, r6, r7


@njit(error_model="numpy", nogil=True, inline="always")
def swap(low, high, bits):
    """Exchange the upper groups of `bits` bits of `low` with the lower groups of `high`, in every pair of groups."""
    mask = uint64(0xFFFFFFFFFFFFFFFF) // ((uint64(1) << uint64(bits)) + uint64(1))
    difference = ((low >> uint64(bits)) ^ high) & mask
    return low ^ (difference << uint64(bits)), high ^ difference

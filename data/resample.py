"""Cut a box and resize it as Pillow does, to the bit, in compiled code without the interpreter lock.

Pillow (Resample.c) resizes 8-bit images in two passes, one along each axis. An output value is a weighted sum of
neighbouring input values: the interpolation kernel, stretched by the ratio of the sizes when shrinking (antialiasing),
normalised to sum 1 in double precision, then rounded to 22-bit fixed point. Each pass rounds its result to 8 bits, so
the order of the passes shows in a few pixels; that of the sums does not, as they are integers.

Here both passes are one routine that sums whole rows, which is what a compiler turns into vector instructions; the pass
along rows runs on the transposed image.
"""

import math

import numpy as np
from numba import int32, njit, uint8

PRECISION = 22  # fractional bits of a weight: 255 times the weights, summed, stays within 32 bits
LANES = 4  # the weights of an output value are padded with zeros to a multiple: the inner loop takes four rows at once


@njit(error_model="numpy", nogil=True)
def resize_crop(image, top, left, height, width, bicubic, flip, out):
    """Write the box of `image`, uint8 (rows, columns, 3), into `out`, uint8 (size, size, 3), mirrored if `flip`.

    Equal in every bit to Pillow 13's `image.crop((left, top, left + width, top + height)).resize((size, size))` with
    BICUBIC or BILINEAR, followed by a mirror where `flip`. Older versions of Pillow never resize columns first.
    """
    size = out.shape[0]
    if columns_first(height, width, size):
        short = np.empty((size, width, 3), np.uint8)
        resize_rows(image, top, left, height, width, bicubic, False, short)
        turned = np.empty((width, size, 3), np.uint8)
        transpose(short, 0, 0, turned)
        square = np.empty((size, size, 3), np.uint8)
        resize_rows(turned, 0, 0, width, size, bicubic, flip, square)
        transpose(square, 0, 0, out)
    else:
        turned = np.empty((width, height, 3), np.uint8)
        transpose(image, top, left, turned)
        narrow = np.empty((size, height, 3), np.uint8)
        resize_rows(turned, 0, 0, width, height, bicubic, flip, narrow)
        packed = np.empty((height, size, 3), np.uint8)
        transpose(narrow, 0, 0, packed)
        resize_rows(packed, 0, 0, height, size, bicubic, False, out)


@njit(error_model="numpy", nogil=True)
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
def resize_rows(image, top, left, height, width, bicubic, mirrored, out):
    """Resize the box of `image`, uint8, along its rows into `out` (size, width, 3), last row first if `mirrored`."""
    box = slice(3 * left, 3 * (left + width))  # in rows of bytes, three to a pixel
    rows, targets = image.reshape(len(image), -1), out.reshape(len(out), -1)
    last, length = top + height - 1, 3 * width
    first, weights = fixed_point_weights(height, len(out), bicubic)
    sums = np.empty(length, np.int32)
    for o in range(len(out)):
        for j in range(length):
            sums[j] = 1 << (PRECISION - 1)  # one half: the shift below rounds to nearest
        for t in range(0, weights.shape[1], LANES):
            w0, w1, w2, w3 = weights[o, t], weights[o, t + 1], weights[o, t + 2], weights[o, t + 3]
            i = top + first[o] + t
            r0, r1 = rows[min(i, last), box], rows[min(i + 1, last), box]  # beyond the last, weights are zero
            r2, r3 = rows[min(i + 2, last), box], rows[min(i + 3, last), box]
            for j in range(length):
                sums[j] += r0[j] * w0 + r1[j] * w1 + r2[j] * w2 + r3[j] * w3
        target = targets[len(out) - 1 - o if mirrored else o]
        for j in range(length):
            target[j] = uint8(min(max(sums[j] >> int32(PRECISION), int32(0)), int32(255)))


@njit(error_model="numpy", nogil=True)
def fixed_point_weights(size_in, size_out, bicubic):
    """Weights that resize `size_in` values to `size_out`: first input of each output, and int32 (size_out, taps)."""
    scale = size_in / size_out
    stretch = max(scale, 1.0)
    support = (2.0 if bicubic else 1.0) * stretch
    taps = (math.ceil(2 * support) + LANES) // LANES * LANES  # at least one more than 2 * support
    first = np.empty(size_out, np.int64)
    weights = np.zeros((size_out, taps), np.int32)
    exact = np.empty(taps)
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
        first[o] = begin
    return first, weights


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
def transpose(image, top, left, out):
    """Write the box of `image` at (top, left) that fills `out` (width, height, 3), rows and columns exchanged."""
    for x in range(out.shape[0]):
        for y in range(out.shape[1]):
            for c in range(3):
                out[x, y, c] = image[top + y, left + x, c]

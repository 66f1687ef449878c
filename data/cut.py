"""Cuts out of a stored JPEG file, without decoding it, the JPEG file of a crop's neighbourhood.

That needs restart markers and an index of them, which `data.restart` adds when images are stored. The index is an
application segment, the first of the file (integers are big-endian, as elsewhere in JPEG):

    0xFFEF, length, "GABR", width and height of a minimum coded unit, units in a piece (1 byte each),
    pieces in a row, offset of the height in the header, length of the header, and of every piece (2 bytes each)

where a piece is what lies between two restarts, and the header all between the index and the first piece.
"""

import struct

import numpy as np
from numba import njit

from data.memory import copy_bytes

INDEX_MARKER = 0xFFEF  # APP15
INDEX_HEAD = struct.Struct(">HH4sBBBHHH")  # all but the lengths of the pieces
MAGIC = b"GABR"
STUFFED, SOI, EOI, RESTART = 0xFF, 0xD8, 0xD9, 0xD0  # markers: the first byte of all; begin and end of a file
REACH = 2  # pixels beyond a crop that its pixels depend on, where chroma is interpolated


@njit(error_model="numpy", nogil=True)
def cut(jpeg, height, width, top, left, box_height, box_width, out):
    """Write to `out` a JPEG file of the pieces of `jpeg`, which is `height` by `width` pixels, that a box depends on.

    Returns the number of its bytes, then the first row and column of what it shows, and its height and width. Where
    `jpeg` has no index, that is 0 bytes. `out` must have room for as many bytes as `jpeg` has.
    """
    index_end = 4 + two(jpeg, 4) if is_indexed(jpeg) else len(jpeg)
    if index_end >= len(jpeg):
        return 0, 0, 0, height, width
    unit_height, piece_width, per_row = np.int64(jpeg[11]), np.int64(jpeg[10]) * jpeg[12], two(jpeg, 13)
    y0, y1 = max(top - REACH, 0) // unit_height, -(-min(top + box_height + REACH, height) // unit_height)
    x0, x1 = max(left - REACH, 0) // piece_width, -(-min(left + box_width + REACH, width) // piece_width)
    shown = min(y1 * unit_height, height) - y0 * unit_height, min(x1 * piece_width, width) - x0 * piece_width
    header = two(jpeg, 17)
    if index_end < 19 + 2 * y1 * per_row or index_end + header > len(jpeg):
        return 0, 0, 0, height, width
    copy_bytes(jpeg, 0, 2, out, 0)
    copy_bytes(jpeg, index_end, header, out, 2)
    for i in range(2):
        out[2 + two(jpeg, 15) + 2 * i], out[3 + two(jpeg, 15) + 2 * i] = shown[i] >> 8, shown[i] & 255
    source, target, number = index_end + header, 2 + header, 0
    for y in range(y1):
        for x in range(per_row):
            size = two(jpeg, 19 + 2 * (y * per_row + x))
            if source + size > len(jpeg):
                return 0, 0, 0, height, width
            if y >= y0 and x0 <= x < x1:
                copy_bytes(jpeg, source, size, out, target)
                target += size
                out[target], out[target + 1] = STUFFED, RESTART + number % 8
                target += 2
                number += 1
            source += size + 2
    out[target - 1] = EOI
    return target, y0 * unit_height, x0 * piece_width, shown[0], shown[1]


@njit(error_model="numpy", nogil=True)
def is_indexed(jpeg):
    """Whether `jpeg` was made by `add_restarts`."""
    if len(jpeg) < 32 or jpeg[0] != STUFFED or jpeg[1] != SOI or two(jpeg, 2) != INDEX_MARKER:
        return False
    return jpeg[6] == MAGIC[0] and jpeg[7] == MAGIC[1] and jpeg[8] == MAGIC[2] and jpeg[9] == MAGIC[3]


@njit(error_model="numpy", nogil=True)
def two(data, at):
    """The two bytes at `at` as an integer."""
    return np.int64(data[at]) << 8 | data[at + 1]

"""JPEG files that can be decoded in part: the same image with restart markers, and an index of where they are.

A JPEG's entropy-coded data is one long stream of bits whose numbers are differences from those before, so that a crop
costs as much as the image. At a restart marker (ITU-T T.81, F.1.1.5 and F.2.1.3.1) a new byte begins, and differences
begin at zero. With a marker after every few blocks of a row, the bytes of a crop's neighbourhood, put behind the header
with another height and width, are a JPEG file of that neighbourhood: the decoder reads and computes nothing else.
Coefficients stay as they are and so do pixels: only the first difference of each piece is coded anew.

`add_restarts` makes such a file when images are stored, `data.cut` takes neighbourhoods out of it. To all other
software it is an ordinary JPEG file.
"""

import struct
from dataclasses import dataclass

import numpy as np
from numba import njit

from data.cut import EOI, INDEX_HEAD, INDEX_MARKER, MAGIC, RESTART, SOI, STUFFED

PIECE = 64  # pixels, about: shorter pieces fit a crop better, but each costs some bytes and time
SOS, DQT, DHT, DRI, DNL = 0xDA, 0xDB, 0xC4, 0xDD, 0xDC
BASELINE, EXTENDED = 0xC0, 0xC1  # frames with one scan of Huffman codes
KEPT = (0xE0, 0xEE, DQT)  # besides the quantisation, what says how colours are coded: JFIF and Adobe segments
# Differences of 0 to 11 bits: code lengths of the tables that T.81 gives as typical (K.3, K.4); others lack some.
DC_LENGTHS = ((0, 1, 5, 1, 1, 1, 1, 1, 1), (0, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1))


class NotSuitable(Exception):
    """A JPEG file of another kind: progressive, in several scans, damaged."""


@dataclass
class Component:
    """A colour channel of a frame."""

    name: int
    horizontal: int  # blocks in a minimum coded unit
    vertical: int
    dc: int = 0  # which Huffman tables
    ac: int = 0


@dataclass
class Parsed:
    """A JPEG file up to its entropy-coded data."""

    kept: list[bytes]  # whole segments
    frame: bytes
    components: list[Component]
    height: int
    width: int
    tables: dict[tuple[int, int], bytes]  # (0 for DC, 1 for AC; number) to 16 counts and the symbols
    interval: int  # units between restarts, 0 for none
    start: int  # of the data


def add_restarts(jpeg: bytes) -> bytes | None:
    """`jpeg` with restart markers and their index; None if it is not of the usual kind (see `NotSuitable`).

    The caller compares pixels: a damaged file may come out otherwise.
    """
    try:
        parsed = parse(jpeg)
        return _with_restarts(jpeg, parsed)
    except (NotSuitable, LookupError, struct.error):
        return None


def parse(jpeg: bytes) -> Parsed:
    """The segments before the data; raises NotSuitable, and IndexError or struct.error where the file ends."""
    kept: list[bytes] = []
    components: list[Component] = []
    tables: dict[tuple[int, int], bytes] = {}
    frame, height, width, interval, at = b"", 0, 0, 0, 2
    while True:
        while jpeg[at + 1] == STUFFED:  # fill bytes
            at += 1
        marker, length = struct.unpack_from(">xBH", jpeg, at)
        if jpeg[at] != STUFFED or marker == DNL or not (0xC0 <= marker <= 0xFE) or RESTART <= marker <= SOI:
            raise NotSuitable
        body = jpeg[at + 4 : at + 2 + length]
        if marker in (BASELINE, EXTENDED):
            frame = jpeg[at : at + 2 + length]
            bits, height, width, count = struct.unpack_from(">BHHB", body)
            components = [Component(*_unpacked(body[6 + 3 * i : 9 + 3 * i])) for i in range(count)]
            if bits != 8 or not height:
                raise NotSuitable
        elif 0xC0 <= marker <= 0xCF and marker != DHT:
            raise NotSuitable  # progressive, lossless, arithmetic
        elif marker == DHT:
            tables |= _huffman_tables(body)
        elif marker == DRI:
            (interval,) = struct.unpack(">H", body)
        elif marker in KEPT:
            kept.append(jpeg[at : at + 2 + length])
        elif marker == SOS:
            _choose_tables(components, body)
            return Parsed(kept, frame, components, height, width, tables, interval, at + 2 + length)
        at += 2 + length


def _unpacked(entry: bytes) -> tuple[int, int, int]:
    return entry[0], entry[1] >> 4, entry[1] & 15


def _huffman_tables(body: bytes) -> dict[tuple[int, int], bytes]:
    tables = {}
    while body:
        size = 17 + sum(body[1:17])
        tables[body[0] >> 4, body[0] & 15] = body[1:size]
        body = body[size:]
    return tables


def _choose_tables(components: list[Component], body: bytes) -> None:
    """Note which Huffman tables the scan uses; raises NotSuitable unless it is the only one."""
    count = body[0]
    names = [component.name for component in components]
    if count not in (1, 3) or [body[1 + 2 * i] for i in range(count)] != names or body[-3:] != b"\0\x3f\0":
        raise NotSuitable
    for i, component in enumerate(components):
        component.dc, component.ac = body[2 + 2 * i] >> 4, body[2 + 2 * i] & 15
    if count == 1:
        components[0].horizontal = components[0].vertical = 1  # a scan of one channel has units of one block


def _with_restarts(jpeg: bytes, parsed: Parsed) -> bytes:
    components = parsed.components
    unit_width = 8 * max(component.horizontal for component in components)
    unit_height = 8 * max(component.vertical for component in components)
    columns, rows = -(-parsed.width // unit_width), -(-parsed.height // unit_height)
    length = piece_length(columns, unit_width)
    numbers = sorted({component.dc for component in components})
    dc_tables = [typical_dc_table(min(numbers.index(component.dc), 1)) for component in components]
    blocks = np.repeat(np.arange(len(components)), [c.horizontal * c.vertical for c in components])
    out = np.empty(2 * len(jpeg) + 64 * columns * rows, np.uint8)
    sizes = np.zeros(columns * rows // length, np.int64)
    written = recode(
        np.frombuffer(jpeg, np.uint8),
        parsed.start,
        parsed.interval,
        blocks,
        np.stack([lookup(parsed.tables[0, c.dc]) for c in components]),
        np.stack([lookup(parsed.tables[1, c.ac]) for c in components]),
        np.stack([codes(table) for table in dc_tables]),
        length,
        out,
        sizes,
    )
    if written < 0 or sizes.max() > 0xFFFF or INDEX_HEAD.size + 2 * len(sizes) > 0xFFFF:
        raise NotSuitable
    header, height_at = _header(parsed, dc_tables, length)
    head = (INDEX_MARKER, INDEX_HEAD.size - 2 + 2 * len(sizes), MAGIC, unit_width, unit_height, length)
    index = INDEX_HEAD.pack(*head, columns // length, height_at, len(header)) + sizes.astype(">u2").tobytes()
    return b"\xff\xd8" + index + header + out[:written].tobytes()


def piece_length(columns: int, unit_width: int) -> int:
    """Units in a piece: the divisor of `columns`, units in a row, that makes pieces nearest to `PIECE` pixels."""
    divisors = [n for n in range(1, columns + 1) if columns % n == 0 and n < 256]
    return min(divisors, key=lambda n: abs(np.log(n * unit_width / PIECE)))


def _header(parsed: Parsed, dc_tables: list[bytes], length: int) -> tuple[bytes, int]:
    """The segments of the new file, and where in them the height is, which the width follows."""
    parts = [*parsed.kept]
    height_at = sum(map(len, parts)) + 5
    parts.append(parsed.frame)
    selectors = b""
    for i, component in enumerate(parsed.components):
        number = dc_tables.index(dc_tables[i])
        if number == i:
            parts.append(_segment(DHT, bytes([i]) + dc_tables[i]))
        selectors += bytes([component.name, number << 4 | component.ac])
    for number in sorted({component.ac for component in parsed.components}):
        parts.append(_segment(DHT, bytes([1 << 4 | number]) + parsed.tables[1, number]))
    parts.append(_segment(DRI, struct.pack(">H", length)))
    parts.append(_segment(SOS, bytes([len(parsed.components)]) + selectors + b"\0\x3f\0"))
    return b"".join(parts), height_at


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", STUFFED, marker, 2 + len(body)) + body


def typical_dc_table(number: int) -> bytes:
    """T.81's table of DC differences for luminance (0) or chrominance (1): 16 counts and the symbols."""
    return bytes(DC_LENGTHS[number]).ljust(16, b"\0") + bytes(range(12))


def codes(table: bytes) -> np.ndarray:
    """Code and length of every symbol, int32 (256, 2), length 0 for those without (T.81, C.2)."""
    result = np.zeros((256, 2), np.int32)
    code, at = 0, 16
    for bits in range(1, 17):
        for symbol in table[at : at + table[bits - 1]]:
            result[symbol] = code, bits
            code += 1
        at += table[bits - 1]
        code <<= 1
    return result


def lookup(table: bytes) -> np.ndarray:
    """For every 16 bits: length * 256 + symbol of the code that they begin with, uint16; 0 where with none."""
    result = np.zeros(1 << 16, np.uint16)
    at = 0
    for symbol, (_, bits) in sorted(enumerate(codes(table).tolist()), key=lambda item: (item[1][1], item[1][0])):
        if bits:
            result[at : at + (1 << 16 - bits)] = bits << 8 | symbol
            at += 1 << 16 - bits
    return result


AT, VALUE, BITS, MADE_UP = range(4)  # of a stream: byte position; bits in hand, their number, and those beyond its end


@njit(error_model="numpy", nogil=True)
def recode(data, start, interval, blocks, dc, ac, new_dc, length, out, sizes):
    """Write the entropy-coded bytes of `data` from `start` on to `out`, restarting after every `length` units.

    `interval` units lie between two restarts in `data`, 0 if it has none. `blocks` has the component of every block of
    a unit; by component, `dc` and `ac` are lookups of the file's Huffman tables, (n, 65536), and `new_dc` the codes
    that differences get. `sizes` receives the bytes of each piece. Returns the bytes written, -1 for damaged data.
    """
    source, target = np.zeros(4, np.int64), np.zeros(4, np.int64)
    source[AT], begin = start, 0
    old, new = np.zeros(len(dc), np.int64), np.zeros(len(dc), np.int64)  # the last DC coefficients
    for unit in range(len(sizes) * length):
        if interval and unit and unit % interval == 0:
            if not pass_marker(data, source):
                return -1
            old[:] = 0
        for c in blocks:
            if not recode_block(data, source, dc[c], ac[c], new_dc[c], old[c : c + 1], new[c : c + 1], out, target):
                return -1
        if source[MADE_UP] > source[BITS]:
            return -1  # has read beyond the end
        if (unit + 1) % length == 0:
            piece = unit // length
            put(out, target, (1 << -target[BITS] % 8) - 1, -target[BITS] % 8)  # ones to the end of the byte
            sizes[piece] = target[AT] - begin
            out[target[AT]] = STUFFED
            out[target[AT] + 1] = RESTART + piece % 8 if piece < len(sizes) - 1 else EOI
            target[AT] += 2
            begin = target[AT]
            new[:] = 0
    return target[AT]


@njit(error_model="numpy", nogil=True)
def recode_block(data, source, dc, ac, new_dc, old, new, out, target):
    """One block of 64 coefficients (T.81, F.2.2): the difference of the first is coded anew, the others are copied."""
    fill(data, source)
    size = take_symbol(source, dc)
    if size > 11:
        return False
    value = take(source, size)
    old[0] += value if size == 0 or value >> (size - 1) else value - (1 << size) + 1
    difference = old[0] - new[0]
    new[0] = old[0]
    size = 0
    while abs(difference) >> size:
        size += 1
    if size > 11:
        return False
    put(out, target, new_dc[size, 0], new_dc[size, 1])
    put(out, target, difference if difference >= 0 else difference + (1 << size) - 1, size)
    k = 1
    while k < 64:
        fill(data, source)
        entry = ac[source[VALUE] >> (source[BITS] - 16)]
        run, size, code = (entry & 255) >> 4, entry & 15, entry >> 8
        if code == 0:
            return False
        put(out, target, take(source, code + size), code + size)
        k = k + run + 1 if size or run == 15 else 64  # a run of 15 zeros and a zero, or the end of the block
    return True


@njit(error_model="numpy", nogil=True)
def fill(data, source):
    """Have at least 32 bits in hand; zeros beyond a marker."""
    while source[BITS] < 32:
        at = source[AT]
        byte = np.int64(data[at]) if at + 1 < len(data) else STUFFED
        if byte != STUFFED:
            source[AT] += 1
        elif at + 1 < len(data) and data[at + 1] == 0:
            source[AT] += 2
        else:
            byte = 0
            source[MADE_UP] += 8
        source[VALUE] = source[VALUE] << 8 | byte
        source[BITS] += 8


@njit(error_model="numpy", nogil=True)
def take(source, count):
    """The next `count` bits."""
    source[BITS] -= count
    value = source[VALUE] >> source[BITS]
    source[VALUE] &= (1 << source[BITS]) - 1
    return value


@njit(error_model="numpy", nogil=True)
def take_symbol(source, table):
    """The symbol of the next Huffman code; 255 if there is none."""
    entry = np.int64(table[source[VALUE] >> (source[BITS] - 16)])
    take(source, entry >> 8)
    return entry & 255 if entry else 255


@njit(error_model="numpy", nogil=True)
def pass_marker(data, source):
    """Go on behind the restart marker that must be next."""
    at = source[AT]
    if source[BITS] - source[MADE_UP] >= 8 or at + 1 >= len(data) or data[at] != STUFFED or data[at + 1] & 0xF8 != 0xD0:
        return False
    source[AT] = at + 2
    source[VALUE] = source[BITS] = source[MADE_UP] = 0
    return True


@njit(error_model="numpy", nogil=True)
def put(out, target, value, count):
    """Append the `count` bits of `value`; a byte of ones is followed by one of zeros."""
    target[VALUE] = target[VALUE] << count | value
    target[BITS] += count
    while target[BITS] >= 8:
        byte = take(target, 8)
        out[target[AT]] = byte
        target[AT] += 1
        if byte == STUFFED:
            out[target[AT]] = 0
            target[AT] += 1

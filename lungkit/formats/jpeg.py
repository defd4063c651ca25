"""Decode JPEG strictly: one that has lost data is refused, although every decoder fills it in.

libjpeg only warns of data that are missing or make no sense, goes on and leaves grey; Pillow,
OpenCV, libtiff and imagecodecs keep that to themselves. simplejpeg, which is libjpeg-turbo as they
are and gives the same pixels, raises it. So does OpenSlide, by itself.

Two losses leave no warning and are looked for here. A cut between the scans of a progressive
picture leaves a coarse one: not all coefficients came. A block of zeros, as a disk or a broken
transfer leaves it, may decode, for zeros are a code, too. In a sequential picture, unless that
code ends a block of pixels (a flat picture is full of them), it is one coefficient 63 times over,
which no encoder writes.

ITU-T T.81 (1992), "Digital compression and coding of continuous-tone still images", annexes B, F
and G.

Feeds tumor_seg.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from lungkit.formats.channels import Unreadable

START, END = b"\xff\xd8", b"\xff\xd9"
# ours: 256 zero bits are a whole block of pixels at the least; of the 8,263 JPEGs of LC25000 and
# LIDC that were looked at none has more than 4 zero bytes in a row
HOLE = bytes(32)
_SEQUENTIAL, _PROGRESSIVE = (0xC0, 0xC1), 0xC2  # frames of Huffman codes
_TABLES, _SCAN, _END = 0xC4, 0xDA, 0xD9
_NOTES = (*range(0xE0, 0xF0), 0xFE)  # of applications, and comments: no part of the picture
_NEXT = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")  # a marker, but no stuffed byte and no restart
_UNKNOWN = ("subsampling", "Unsupported")  # in what simplejpeg says of pictures it does not know


def decode_rgb(content: bytes) -> np.ndarray | None:
    """Decode a colour JPEG to uint8 [H, W, 3], as Pillow does but in half the time.

    None where libjpeg warns: check_jpeg tells whether of lost data. Raises Unreadable.
    """
    import simplejpeg

    try:
        pixels = simplejpeg.decode_jpeg(content)
    except ValueError:
        return None
    _check_scans(list(_parts(content)))
    return pixels


def check_jpeg(content: bytes, tables: bytes | None = None) -> None:
    """Raise Unreadable where a JPEG stream has lost data. Bytes behind its end do not matter.

    tables: the stream of tables which the pieces of a TIFF share; such a piece may lack its end.
    """
    import simplejpeg

    if tables:
        content = tables.removesuffix(END) + content.removeprefix(START) + END
    parts = list(_parts(content))  # without notes: an odd one is warned of, too
    bare = b"".join(segment + data for marker, segment, data in parts if marker not in _NOTES)
    try:  # grey, and an eighth of the size: all data are read, little is computed
        simplejpeg.decode_jpeg(START + bare, "GRAY", min_factor=8)
    except ValueError as error:
        if any(words in str(error) for words in _UNKNOWN):
            raise Unreadable(f"is a JPEG of a rare kind ({error}), in which lost data would not "
                             "be noticed: save it as PNG or TIFF") from None
        if "Premature end of JPEG file" in str(error):
            raise Unreadable("is truncated") from None
        raise Unreadable(f"is damaged: data are lost ({error})") from None
    _check_scans(parts)


def _parts(content: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """(marker, segment with its marker, data of a scan) up to the end, or the rest that is none."""
    at = len(START)
    while content[at:at + 1] == b"\xff" and at + 1 < len(content):
        marker = content[at + 1]
        if marker == 0xFF:  # fill
            at += 1
            continue
        if marker == _END:
            yield marker, END, b""
            return
        end = stop = at + 2 + int.from_bytes(content[at + 2:at + 4], "big")
        if marker == _SCAN:
            following = _NEXT.search(content, end)
            stop = following.start() if following else len(content)
        yield marker, content[at:end], content[end:stop]
        at = stop
    yield 0, content[at:], b""


def _check_scans(parts: list[tuple[int, bytes, bytes]]) -> None:
    """Refuse scans that are missing or have a hole. parts: of a stream that libjpeg decodes."""
    frame, first, needed, got = 0, {}, set(), set()
    for marker, segment, data in parts:
        if marker in (*_SEQUENTIAL, _PROGRESSIVE):
            frame, needed = marker, {segment[10 + 3 * i] for i in range(segment[9])}
        elif marker == _TABLES:
            rest = segment[4:]
            while rest:  # what the code of zeros, the shortest, stands for: 0 ends a block
                if rest[0] >> 4:
                    first[rest[0] & 15] = rest[17:18]
                rest = rest[17 + sum(rest[1:17]):]
        elif marker == _SCAN and frame:
            components, chosen, (low, high, bits) = segment[5:-3:2], segment[6:-3:2], segment[-3:]
            if frame in _SEQUENTIAL:
                low, high, bits = 0, 63, 0
                if HOLE in data and any(first.get(one & 15) != b"\0" for one in chosen):
                    raise Unreadable("is damaged: a block of zeros is in its data")
            if not bits & 15:  # down to the last bit
                got |= {(one, i) for one in components for i in range(low, high + 1)}
    if any((one, i) not in got for one in needed for i in range(64)):
        raise Unreadable("is damaged: some of its scans are lost")

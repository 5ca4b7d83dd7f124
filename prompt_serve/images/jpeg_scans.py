"""Scans of a JPEG, read from its bytes before anything is decoded."""

import re
from collections.abc import Iterator
from itertools import islice

# libjpeg goes over the whole image once per scan, however few bytes that has, which takes 1 ms at
# 12 megapixels. Encoders write up to 20; libjpeg-turbo's own tools allow 500.
MAX_SCANS = 100

_MARKER = re.compile(rb"\xff[\xc0-\xcf\xda-\xfe]")  # of segments that have a length
# A header of another length or number of components than these is an error for the decoder; within
# compressed data 0xff is followed by 0, so these bytes cannot occur there.
_SCAN = re.compile(rb"\xff\xda\x00(?:\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)")
_SCAN_BYTES = 5
_PIECE_BYTES = 2**20
_END = b"\xff\xd9"
_FRAMES = range(0xC0, 0xD0)
_NO_FRAMES = {0xC4, 0xC8, 0xCC}  # tables and an extension
_START_OF_SCAN = 0xDA


def has_too_many_scans(jpeg: bytes) -> bool:
    """Return True for more than MAX_SCANS scans; those of thumbnails count as well."""
    return is_decoded_whole(jpeg) and next(islice(_scans(jpeg), MAX_SCANS, None), None) is not None


def _scans(jpeg: bytes) -> Iterator[re.Match[bytes]]:
    """Yield the headers of scans, piece by piece: a search keeps other threads waiting."""
    for start in range(0, len(jpeg), _PIECE_BYTES):
        yield from _SCAN.finditer(jpeg, start, start + _PIECE_BYTES + _SCAN_BYTES - 1)


def is_decoded_whole(jpeg: bytes) -> bool:
    """Return True if all coefficients are in memory while it is decoded: it has several scans."""
    components = 0
    for code, segment, _ in _segments(jpeg):
        if code == _START_OF_SCAN:
            return not segment or segment[0] < components
        if code in _FRAMES and code not in _NO_FRAMES and len(segment) > 5:
            components = segment[5]
            if code % 4 == 2:  # progressive
                return True
    return False


def has_end(jpeg: bytes) -> bool:
    """Return True if the end of the image is near that of the file, and not before its scans."""
    for code, _, end in _segments(jpeg):
        if code == _START_OF_SCAN:
            return jpeg.rfind(_END, max(end, len(jpeg) - _PIECE_BYTES)) >= 0
    return False


def has_all_scans(jpeg: bytes) -> bool:
    """Return True if the last scan of each coefficient has begun; a progressive file has many."""
    expected, exact = 0, set[tuple[int, int]]()
    for code, segment, _ in _segments(jpeg):
        match code, list(segment):
            case 0xC0 | 0xC1 | 0xC2, [_, _, _, _, _, components, *_]:
                expected = 64 * components
            case 0xDA, [components, *values] if len(values) == 2 * components + 3:
                first, last, precision = values[-3:]
                if precision % 16 == 0:  # all bits
                    chosen = values[0:-3:2]
                    exact |= {(c, k) for c in chosen for k in range(first, last + 1)}
    return bool(expected) and len(exact) == expected


def _segments(jpeg: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Yield the segments with a length: code of the marker, content, index of their end."""
    position = 0
    while marker := _MARKER.search(jpeg, position):
        position = marker.end() + int.from_bytes(jpeg[marker.end() : marker.end() + 2])
        yield marker[0][1], jpeg[marker.end() + 2 : position], position

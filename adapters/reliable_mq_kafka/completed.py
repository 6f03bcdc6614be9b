"""What is done beyond the committed offset, as text that goes along with the commit.

A commit is one offset. Where one slow handler holds it up, thousands that are done behind it would
come again after a crash. Hence they are named in the commit's metadata, as far as these have
room: each run of done offsets by its distance from what came before and by its length.

The id of the topic goes along too: offsets that are done say nothing of another topic of the name.
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

ROOM = 3072
"""Characters of a commit's metadata that are used; brokers take 4096 unless told otherwise."""

_MARK = "rmq1:"
_OF = "@"
_ID = re.compile("[A-Za-z0-9+/_-]{22}")
_OFFSETS = 1 << 63
_SEVEN = 7
_REST = 0x7F
_MORE = 0x80

Runs = Sequence[range]
"""Offsets that are done: rising, not empty, with a gap between each and the next."""


def between(open_: Iterable[int], end: int) -> list[range]:
    """Return what lies between the offsets *open_*, which rise, and before *end*."""
    return [range(a + 1, b) for a, b in pairwise([*open_, end]) if b - a > 1]


def join(first: Runs, second: Runs) -> list[range]:
    """Return both, where *second* lies behind *first*; what touches becomes one run."""
    if first and second and first[-1].stop == second[0].start:
        return [*first[:-1], range(first[-1].start, second[0].stop), *second[1:]]
    return [*first, *second]


def encode(runs: Runs, begin: int, room: int = ROOM, log: str | None = None) -> str:
    """Return *runs*, which lie behind *begin*, and the topic's id as at most *room* characters.

    The last ones are left out where they do not fit: they come again, then, after a crash.
    """
    signature = "" if log is None or len(_MARK + _OF + log) > room else _OF + log
    most = (room - len(_MARK) - len(signature)) * 3 // 4
    found = bytearray()
    at = begin
    for run in runs:
        piece = _number(run.start - at) + _number(len(run))
        if len(found) + len(piece) > most:
            break
        found += piece
        at = run.stop
    text = urlsafe_b64encode(found).decode().rstrip("=") + signature
    return _MARK + text if text else ""


def decode(text: str | None, begin: int) -> list[range]:
    """Return the runs in *text*; none where it is somebody else's, or damaged."""
    if not text or not text.startswith(_MARK):
        return []
    try:
        return list(_runs(_bytes(text.removeprefix(_MARK).partition(_OF)[0]), begin))
    except ValueError:
        return []


def log_of(text: str | None) -> str | None:
    """Return the topic's id in *text*, if there is one."""
    if not text or not text.startswith(_MARK):
        return None
    log = text.partition(_OF)[2]
    return log if _ID.fullmatch(log) else None


def _bytes(text: str) -> bytes:
    try:
        padded = text.encode("ascii") + b"=" * (-len(text) % 4)
        return b64decode(padded, altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise ValueError("no base64") from error


def _runs(data: bytes, begin: int) -> Iterator[range]:
    numbers = list(_numbers(data))
    at = begin
    for gap, length in zip(numbers[::2], numbers[1::2], strict=True):
        start, at = at + gap, at + gap + length
        if not gap or not length or at >= _OFFSETS:
            raise ValueError("no runs")
        yield range(start, at)


def _number(value: int) -> bytes:
    found = bytearray()
    while value > _REST:
        found.append(value & _REST | _MORE)
        value >>= _SEVEN
    return bytes([*found, value])


def _numbers(data: bytes) -> Iterator[int]:
    value = shift = 0
    for byte in data:
        value |= (byte & _REST) << shift
        shift += _SEVEN
        if not byte & _MORE:
            yield value
            value = shift = 0
    if shift:
        raise ValueError("cut off")

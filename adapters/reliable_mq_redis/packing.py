"""Words as they travel (RESP), for the one command that has thousands of them.

A client's own packing looks at the type of each word. The words of a publish are bytes, and most
of the others are the same every time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True, slots=True)
class Packed:
    """A call of a script, ready to be sent; ``sha`` names the script."""

    sha: str
    data: bytes


def word(value: bytes) -> bytes:
    """Return *value* as it travels."""
    return b"$%d\r\n%b\r\n" % (len(value), value)


@lru_cache(maxsize=1024)
def known_word(value: str | int) -> bytes:
    """Return one of few *values* as it travels: the name of a field, a number."""
    return word(value.encode() if isinstance(value, str) else b"%d" % value)


def packed(sha: str, count: int, words: Iterable[bytes]) -> Packed:
    """Return the call that runs the script *sha* with its *count* *words*, which travel already."""
    head = (b"*%d\r\n" % (count + 2), known_word("EVALSHA"), known_word(sha))
    return Packed(sha, b"".join((*head, *words)))

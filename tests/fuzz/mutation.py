"""Made-up input: a value of the corpus after some accidents. The same seed makes the same."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

from tests.fuzz.corpus import BODIES, NAMES, SPECIAL, VALUES

T = TypeVar("T")

MOST = 6000
"""Bytes of one mutated value; what is larger is the matter of ``test_memory.py``."""


class Mutator:
    """A source of damaged values."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self._accidents: Sequence[Callable[[bytearray], None]] = (
            self._flip,
            self._set,
            self._cut_end,
            self._cut_out,
            self._insert,
            self._repeat,
            self._swap,
            self._huge_length,
        )

    def reseed(self, seed: int) -> None:
        """Begin anew: what follows depends on *seed* alone."""
        self._random.seed(seed)

    # --- choices ---

    def below(self, count: int) -> int:
        """Return a number from 0 to *count* - 1."""
        return int(self._random.random() * count)

    def chance(self, one_in: int) -> bool:
        """Return True once in so many times."""
        return self._random.random() * one_in < 1

    def pick(self, values: Sequence[T]) -> T:
        """Return one of *values*."""
        return values[int(self._random.random() * len(values))]

    def noise(self, most: int) -> bytes:
        """Return up to *most* bytes of no meaning."""
        return self._random.randbytes(self.below(most + 1))

    def integer(self) -> int:
        """Return a number near some power of two, with any sign."""
        number = (1 << self.below(80)) + self.below(3) - 1
        return -number if self.chance(3) else number

    # --- values ---

    def bytes_of(self, corpus: Sequence[bytes]) -> bytes:
        """Return a value of *corpus* after 0 to 4 accidents, or noise."""
        if self.chance(25):
            return self.noise(64)
        value = self.pick(corpus)
        accidents = self.below(5)
        return self.damaged(value, accidents) if accidents else value

    def damaged(self, value: bytes, accidents: int) -> bytes:
        """Return *value* after so many accidents."""
        data = bytearray(value)
        for _ in range(accidents):
            self.pick(self._accidents)(data)
        return bytes(data[:MOST])

    def text_of(self, corpus: Sequence[str]) -> str:
        """Return a text of *corpus* after 0 to 4 accidents to its bytes; always valid Unicode."""
        text = self.pick(corpus)
        if self.chance(2):
            return text
        return self.damaged(text.encode(), 1 + self.below(4)).decode(errors="replace")

    def argument_of(self, corpus: Sequence[str]) -> str:
        """Return a text as the operating system hands it over: no NUL, bytes as surrogates."""
        text = self.damaged(self.pick(corpus).encode(), self.below(5))
        return text.replace(b"\0", b"").decode(errors="surrogateescape")

    def value(self) -> bytes:
        """Return the value of a header, a key or an id."""
        return self.bytes_of(VALUES)

    def body(self) -> bytes:
        """Return a body."""
        return self.bytes_of(BODIES)

    def name(self) -> str:
        """Return the name of a header."""
        return self.text_of(NAMES)

    def pairs(self, name: Callable[[], T]) -> list[tuple[T, bytes]]:
        """Return headers, at times a great many, at times the same one over and over."""
        count = self.below(8) if not self.chance(40) else self.below(60)
        pairs = [(name(), self.value()) for _ in range(count)]
        if pairs and self.chance(6):
            pairs += [(self.pick(pairs)[0], self.value()) for _ in range(3)]
        return pairs

    # --- accidents ---

    def _place(self, data: bytearray) -> int:
        return self.below(len(data) + 1)

    def _flip(self, data: bytearray) -> None:
        if data:
            data[self.below(len(data))] ^= 1 << self.below(8)

    def _set(self, data: bytearray) -> None:
        if data:
            data[self.below(len(data))] = self.pick((0, 1, 10, 0x7F, 0x80, 0xFF))

    def _cut_end(self, data: bytearray) -> None:
        del data[self._place(data) :]

    def _cut_out(self, data: bytearray) -> None:
        start = self._place(data)
        del data[start : start + 1 + self.below(8)]

    def _insert(self, data: bytearray) -> None:
        start = self._place(data)
        data[start:start] = self.pick(SPECIAL)

    def _repeat(self, data: bytearray) -> None:
        start = self._place(data)
        data[start:start] = data[start : start + 1 + self.below(16)] * (1 + self.below(64))

    def _swap(self, data: bytearray) -> None:
        middle = self._place(data)
        data[:] = data[middle:] + data[:middle]

    def _huge_length(self, data: bytearray) -> None:
        start = self._place(data)
        data[start : start + 4] = self.pick((b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0"))

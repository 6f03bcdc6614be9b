"""The purchases of the file, each with its number in its customer's history."""

from __future__ import annotations

import lzma
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

FILE = Path(__file__).with_name("CDNOW_master.txt.xz")


class Row(NamedTuple):
    """One line: ``number`` counts the customer's purchases from 1, ``cents`` is what was paid."""

    line: int
    customer: str
    number: int
    date: str
    cents: int


def read_rows(limit: int | None = None) -> Iterator[Row]:
    """Yield the purchases in the file's order, *limit* of them at most."""
    numbers: Counter[str] = Counter()
    with lzma.open(FILE, "rt", encoding="ascii") as lines:
        next(lines)  # the header
        for line, text in enumerate(lines, 1):
            if limit is not None and line > limit:
                return
            customer, date, _, dollars = text.split()
            numbers[customer] += 1
            whole, _, fraction = dollars.partition(".")
            cents = int(whole) * 100 + int(fraction.ljust(2, "0"))
            yield Row(line, customer, numbers[customer], date, cents)

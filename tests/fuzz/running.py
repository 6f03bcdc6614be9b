"""Thousands of inputs through one check, and a failure that can be had again.

``RMQ_FUZZ_INPUTS`` says how many each decoder gets (20,000), ``RMQ_FUZZ_SEED`` which (0). Input
*n* depends on the seed, the check's name and *n* alone, so that ``RMQ_FUZZ_FIRST=n`` with
``RMQ_FUZZ_INPUTS=1`` makes it again without those before it.
"""

from __future__ import annotations

import os
import resource
import time
import zlib
from collections.abc import Callable
from typing import TypeVar

from tests.fuzz.mutation import Mutator

T = TypeVar("T")
E = TypeVar("E", bound=Exception)

INPUTS = int(os.environ.get("RMQ_FUZZ_INPUTS", "20000"))
SEED = int(os.environ.get("RMQ_FUZZ_SEED", "0"))
FIRST = int(os.environ.get("RMQ_FUZZ_FIRST", "0"))

_GROWTH_KB = 64 * 1024
"""By how much the peak of the process's memory may rise while one decoder gets its inputs."""


def fuzz(
    name: str, make: Callable[[Mutator], T], check: Callable[[T], object], *, share: int = 1
) -> None:
    """Check what *make* returns, input after input.

    One that takes far longer than the others gets a *share* of the inputs: one in so many.
    """
    mutator = Mutator()
    before, begun = _peak_memory(), time.process_time()
    count = max(1, INPUTS // share)
    for number in range(FIRST, FIRST + count):
        mutator.reseed(_seed_of(name, number))
        subject = make(mutator)
        try:
            check(subject)
        except Exception as error:
            raise AssertionError(_story(name, number, subject, error)) from error
    grown = _peak_memory() - before
    print(f"{name}: {count:,} inputs, seed {SEED}, {time.process_time() - begun:.1f} s of CPU")
    assert grown <= _GROWTH_KB, f"{name}: the process has grown by {grown // 1024} MiB"


def error_of(kind: type[E] | tuple[type[E], ...], run: Callable[[], object]) -> E | None:
    """Return the error of this *kind* that *run* ends in, if any; others pass through."""
    try:
        run()
    except kind as error:
        return error
    return None


def _seed_of(name: str, number: int) -> int:
    return (SEED << 64) + (zlib.crc32(name.encode()) << 32) + number


def _story(name: str, number: int, subject: object, error: Exception) -> str:
    again = f"RMQ_FUZZ_SEED={SEED} RMQ_FUZZ_FIRST={number} RMQ_FUZZ_INPUTS=1"
    return f"{name} fails with {type(error).__name__}: {error}\nagain: {again}\ninput: {subject!r}"


def _peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

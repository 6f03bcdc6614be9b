"""What must hold once everything is quiet, whatever was killed. Pure functions over the truth.

Messages go by their number: it is unique, and rises with the order of their key.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from reliable_mq import DeadLetter
from tests.sweep.application import HEADERS, MAX_ATTEMPTS, RETRY_DELAY, Job


@dataclass(frozen=True)
class Letter:
    """A dead letter, as the store has it."""

    number: int
    attempts: int
    cause: str
    topic: str
    headers: Mapping[str, Any]
    body: bytes

    @classmethod
    def of(cls, found: DeadLetter, number: int) -> Letter:
        """Return what the checks look at of a dead letter."""
        return cls(
            number=number,
            attempts=found.attempts,
            cause=found.cause,
            topic=found.message.topic,
            headers=dict(found.message.headers),
            body=found.message.body,
        )


@dataclass(frozen=True)
class Truth:
    """What is found at the end. ``effects`` are numbers in the order of their commits."""

    committed: frozenset[int]
    """Numbers whose marker exists: their transaction was committed, whatever anybody heard."""
    accepted: frozenset[int]
    """Numbers whose transaction returned without an error."""
    jobs: Mapping[int, Job]
    bodies: Mapping[int, bytes]
    effects: Mapping[str, Sequence[int]]
    dead: Mapping[str, Sequence[Letter]]
    calls: Sequence[Mapping[str, Any]] = ()
    """Of the history, in its order: ``call`` and ``fail`` lines of handlers."""
    waiting: int = 0
    """Rows in outbox and retry table, and what the broker has not had acknowledged."""
    graves: Sequence[int] = ()
    """Numbers of dead letters of the group ``ordered`` that came out of the dead-letter topic."""
    replayed: frozenset[int] = field(default_factory=frozenset)
    discarded: frozenset[int] = field(default_factory=frozenset)
    may_lose: frozenset[str] = field(default_factory=frozenset)
    """Groups that promise no more than at most once."""
    may_repeat: frozenset[str] = field(default_factory=frozenset)
    """Groups that promise no more than at least once."""
    ordered: frozenset[str] = frozenset({"ordered"})

    def groups(self) -> list[str]:
        """Every group with effects or dead letters."""
        return sorted(self.effects.keys() | self.dead.keys())

    def buried(self, group: str) -> set[int]:
        """Numbers of the dead letters of a group."""
        return {letter.number for letter in self.dead.get(group, ())}


def violations(truth: Truth) -> list[str]:
    """Return a line for everything that must not be."""
    checks = (
        _lost, _twice, _invented, _order, _both, _stuck, _letters, _copies, _policy, _vacuous,
    )  # fmt: skip
    return [line for check in checks for line in check(truth)]


def missing(truth: Truth) -> dict[str, frozenset[int]]:
    """Return what each group has neither handled nor buried; only groups that may not lose."""
    found = {}
    for group in truth.groups():
        ended = set(truth.effects.get(group, ())) | truth.buried(group) | truth.discarded
        lost = truth.committed - ended
        if lost and group not in truth.may_lose:
            found[group] = lost
    return found


def _lost(truth: Truth) -> Iterator[str]:
    if gone := truth.accepted - truth.committed:
        yield f"I1: committed, and gone: {sorted(gone)}"
    for group, lost in missing(truth).items():
        yield f"I1 {group}: lost {sorted(lost)}"


def _twice(truth: Truth) -> Iterator[str]:
    for group, numbers in truth.effects.items():
        if group in truth.may_repeat:
            continue
        if twice := [number for number, count in Counter(numbers).items() if count > 1]:
            yield f"I2 {group}: more than one effect of {sorted(twice)}"


def _invented(truth: Truth) -> Iterator[str]:
    for group in truth.groups():
        seen = set(truth.effects.get(group, ())) | truth.buried(group)
        if invented := seen - truth.committed:
            yield f"I3 {group}: of transactions that were not committed: {sorted(invented)}"


def _order(truth: Truth) -> Iterator[str]:
    for group in truth.ordered & truth.effects.keys():
        by_key: dict[str, list[int]] = defaultdict(list)
        for number in truth.effects[group]:
            key = truth.jobs[number].key
            if key is not None and number not in truth.replayed:
                by_key[key].append(number)
        for key, numbers in by_key.items():
            if any(a >= b for a, b in pairwise(numbers)):
                yield f"I4 {group}: key {key} in the order {numbers}"


def _both(truth: Truth) -> Iterator[str]:
    for group in truth.groups():
        if group in truth.may_repeat:
            continue  # a redelivery may succeed beside a waiting retry
        if both := set(truth.effects.get(group, ())) & truth.buried(group):
            yield f"I5 {group}: handled and dead-lettered: {sorted(both)}"


def _stuck(truth: Truth) -> Iterator[str]:
    if truth.waiting:
        yield f"I5: {truth.waiting} messages stuck in outbox, broker or retries"


def _letters(truth: Truth) -> Iterator[str]:
    for group, letters in truth.dead.items():
        numbers = [letter.number for letter in letters]
        if len(set(numbers)) != len(numbers):
            yield f"I6 {group}: more than one dead letter of one message: {sorted(numbers)}"
        for letter in letters:
            if letter.body != truth.bodies.get(letter.number):
                yield f"I6 {group}: the body of dead letter {letter.number} has changed"
            if any(letter.headers.get(name) != value for name, value in HEADERS.items()):
                yield f"I6 {group}: dead letter {letter.number} has the headers {letter.headers}"
            if not letter.cause or not letter.topic:
                yield f"I6 {group}: dead letter {letter.number} has no cause or no source"


def _copies(truth: Truth) -> Iterator[str]:
    if "ordered" not in truth.dead:
        return
    counted = Counter(truth.graves)
    # A replayed message dies as often as it is replayed, and each time a copy is sent.
    died = truth.buried("ordered") | truth.discarded | truth.replayed
    for number in sorted(died | counted.keys()):
        wrong = not counted[number] if number in truth.replayed else counted[number] != 1
        if wrong or number not in died:
            yield f"I6: {counted[number]} copies of dead letter {number} in the dead-letter topic"


def _policy(truth: Truth) -> Iterator[str]:
    failed: dict[tuple[str, int], tuple[int, float]] = {}
    for line in truth.calls:
        which = (line["group"], line["number"])
        attempt, at = line["attempt"], line["t"]
        if attempt > MAX_ATTEMPTS:
            yield f"I8 {which}: attempt {attempt} of {MAX_ATTEMPTS}"
        if line["what"] == "fail":
            # Where a redelivery may run beside a waiting retry, it does not put that off.
            same = which in failed and failed[which][0] >= attempt
            if not (same and line["group"] in truth.may_repeat):
                failed[which] = (attempt, at)
        elif which in failed and failed[which][0] == attempt - 1:
            waited = at - failed[which][1]
            if waited < 0.9 * RETRY_DELAY:
                yield f"I8 {which}: attempt {attempt} came after {waited:.3f} s"


def _vacuous(truth: Truth) -> Iterator[str]:
    if not truth.committed:
        yield "I14: nothing was committed"
    # A group that acknowledges first may have lost all of so few messages.
    if not truth.effects.keys() <= truth.may_lose and not any(truth.effects.values()):
        yield "I14: nothing was handled"

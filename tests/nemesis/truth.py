"""What a run has left: read from history and database, in the form that the checks take."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select

from reliable_mq import ReliableMQ
from tests.nemesis.application import EXACTLY, Arena, groups_of
from tests.nemesis.recording import number_of
from tests.sweep import application as sweep
from tests.sweep.application import HEADERS, RETRY_DELAY, Job
from tests.sweep.invariants import Letter, Truth, violations

MANY = 1_000_000
LATE = 0.5
"""Seconds within which a process notes that its clock has jumped."""
_READ = {
    *("invoke", "ok", "undone", "done", "call", "fail"),
    *("replay", "discard", "discarded", "clock"),
}
Line = dict[str, Any]


@dataclass(frozen=True)
class Findings:
    """The truth, and what of the history the checks of the sweep do not know."""

    truth: Truth
    undone: frozenset[int]
    """Numbers of transactions that were rolled back on purpose."""
    invoked: frozenset[int]
    discarded: int = 0
    """Dead letters that somebody has discarded, and was told so."""
    jumps: int = 0
    """Jumps of its clock that a process has seen, summed up over all."""

    def violations(self) -> list[str]:
        """Return a line for everything that must not be."""
        return [*violations(self.truth), *self._from_nowhere()]

    def _from_nowhere(self) -> Iterator[str]:
        if both := self.undone & self.truth.committed:
            yield f"I3: rolled back, and committed all the same: {sorted(both)}"
        if unknown := self.truth.committed - self.invoked:
            yield f"I3: nobody published {sorted(unknown)}"


def waiting(mq: ReliableMQ) -> int:
    """Return how many messages are not where they end; a lag that is not told counts as one."""
    status = mq.status()
    left = sum(
        (1 if group.lag is None else group.lag) + group.retries for group in status.groups.values()
    )
    return left + status.outbox.pending + status.outbox.held


def read(mq: ReliableMQ, arena: Arena) -> Findings:
    """Read everything."""
    lines = by_kind(Path(arena.folder))
    jobs = {job["number"]: Job(**job) for line in lines["invoke"] for job in line["jobs"]}
    effects = _effects(mq, arena)
    for line in lines["done"]:
        effects["least"].append(line["number"])
    groups = groups_of(arena)
    replayed = _pairs(lines["replay"])
    bodies = {number: job.model_dump_json().encode() for number, job in jobs.items()}
    dead = _letters(mq, arena, groups)
    _add_discarded(dead, effects, bodies, lines)
    dead.setdefault(EXACTLY, [])
    dead[EXACTLY] += [_unseen(number, bodies) for number in sorted(set(effects["exact-graves"]))]
    truth = Truth(
        committed=frozenset(_markers(mq, arena)),
        accepted=_numbers(lines["ok"]),
        jobs=jobs,
        bodies=bodies,
        effects={group: effects[group] for group in groups},
        dead={group: dead[group] for group in groups},
        calls=list(_first_attempts(_timed(lines, arena), replayed)),
        waiting=waiting(mq),
        graves=effects["graves"],
        replayed=frozenset(number for group, number in replayed if group == "ordered"),
        # One begins anew for each record, and is checked by these.
        may_repeat=frozenset({"least", EXACTLY}),
    )
    return Findings(
        truth,
        undone=_numbers(lines["undone"]),
        invoked=frozenset(jobs),
        discarded=len(lines["discarded"]),
        jumps=len(lines["clock"]),
    )


def _pairs(lines: Iterable[Line]) -> set[tuple[str, int]]:
    return {(line["group"], line["number"]) for line in lines}


def _add_discarded(
    dead: dict[str, list[Letter]],
    effects: dict[str, list[int]],
    bodies: dict[int, bytes],
    lines: dict[str, list[Line]],
) -> None:
    """Count discarded letters as dead letters, so that nothing else may have become of them.

    Where nobody knows whether the letter was discarded, it may have been replayed later as well;
    an at-least-once group may have it twice at any time.
    """
    known = _pairs(lines["discarded"])
    for group, number in sorted(_pairs(lines["discard"])):
        there = any(letter.number == number for letter in dead[group])
        certain = (group, number) in known and group != "least"
        if certain or not (there or number in effects[group]):
            dead[group].append(_unseen(number, bodies))


def _unseen(number: int, bodies: dict[int, bytes]) -> Letter:
    """Return a letter of which only the number is known."""
    return Letter(
        number=number,
        attempts=1,
        cause="known by its number",
        topic="known by its number",
        headers=HEADERS,
        body=bodies.get(number, b""),
    )


def _timed(lines: dict[str, list[Line]], arena: Arena) -> list[Line]:
    """Return attempts and failures, but not those failures whose delay a clock has cut short.

    Only where the database is a file, whose clock is that of the processes.
    """
    if not arena.database_url.startswith("sqlite"):
        return lines["call"] + lines["fail"]
    jumps = [float(line["t"]) for line in lines["clock"]]
    fails = [
        line
        for line in lines["fail"]
        if not any(-LATE <= at - float(line["t"]) <= RETRY_DELAY + LATE for at in jumps)
    ]
    return lines["call"] + fails


def by_kind(folder: Path) -> dict[str, list[Line]]:
    found: dict[str, list[Line]] = defaultdict(list)
    for line in history_lines(folder):
        if line["what"] in _READ:
            found[line["what"]].append(line)
    return found


def history_lines(folder: Path) -> Iterator[Line]:
    """Give every line of the history, in the order in which they were written."""
    with (folder / "history").open() as history:
        yield from map(json.loads, history)


def _numbers(lines: Iterable[Line]) -> frozenset[int]:
    return frozenset(number for line in lines for number in line["numbers"])


def _first_attempts(lines: list[Line], replayed: set[tuple[str, int]]) -> Iterator[Line]:
    """Give the lines in their order, of the failures of one attempt only the first.

    An attempt is made again where its outcome was not stored. A process that was stopped in the
    middle may note its failure when another one has stored another's, whose delay is over.
    Replayed messages begin anew with their attempts.
    """
    seen = set()
    for line in sorted(lines, key=lambda line: float(line["t"])):
        which = (line["group"], line["number"])
        if which in replayed:
            continue
        if line["what"] == "fail":
            if (*which, line["attempt"]) in seen:
                continue
            seen.add((*which, line["attempt"]))
        yield line


def _markers(mq: ReliableMQ, arena: Arena) -> list[int]:
    query = select(sweep.marker.c.number).where(sweep.marker.c.cell == arena.cell)
    with mq.store.engine.connect() as connection:
        return list(connection.scalars(query))


def _effects(mq: ReliableMQ, arena: Arena) -> dict[str, list[int]]:
    table = sweep.effect.c
    query = select(table.consumer_group, table.number).where(table.cell == arena.cell)
    found: dict[str, list[int]] = defaultdict(list)
    with mq.store.engine.connect() as connection:
        for group, number in connection.execute(query.order_by(table.id)):
            found[group].append(number)
    return found


def _letters(mq: ReliableMQ, arena: Arena, groups: Iterable[str]) -> dict[str, list[Letter]]:
    found: dict[str, list[Letter]] = {group: [] for group in groups}
    for letter in mq.dead_letters(arena.cell, limit=MANY):
        number = number_of(letter.message.body)
        found[letter.group].append(Letter.of(letter, number))
    return found

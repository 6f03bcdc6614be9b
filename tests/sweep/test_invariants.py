"""The checks find what they are for: one truth that is right, and ways to spoil it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.sweep.application import HEADERS, Job
from tests.sweep.invariants import Letter, Truth, violations

JOBS = {number: Job(number=number, key="a") for number in range(5)}
BODIES = {number: b"%d" % number for number in JOBS}
LETTER = Letter(number=2, attempts=3, cause="E", topic="t", headers=HEADERS, body=b"2")


def call(what: str, attempt: int, at: float) -> dict[str, Any]:
    return {"what": what, "group": "ordered", "number": 1, "attempt": attempt, "t": at}


GOOD = Truth(
    committed=frozenset({0, 1, 2, 3}),
    accepted=frozenset({0, 1, 2}),
    jobs=JOBS,
    bodies=BODIES,
    effects={"ordered": [0, 1, 3], "batch": [3, 1, 0, 2]},
    dead={"ordered": [LETTER], "batch": []},
    calls=[call("call", 1, 1.0), call("fail", 1, 1.0), call("call", 2, 1.3)],
    graves=[2],
)

SPOILT: dict[str, tuple[str, Callable[[Truth], Truth]]] = {
    "accepted and not committed": ("I1", lambda t: replace(t, accepted=frozenset({0, 4}))),
    "lost": ("I1", lambda t: replace(t, effects={"ordered": [0, 1], "batch": [3, 1, 0, 2]})),
    "twice": ("I2", lambda t: replace(t, effects={**t.effects, "batch": [3, 1, 0, 2, 3]})),
    "invented": ("I3", lambda t: replace(t, effects={**t.effects, "batch": [3, 1, 0, 2, 4]})),
    "out of order": ("I4", lambda t: replace(t, effects={**t.effects, "ordered": [0, 3, 1]})),
    "both": ("I5", lambda t: replace(t, effects={**t.effects, "ordered": [0, 1, 2, 3]})),
    "stuck": ("I5", lambda t: replace(t, waiting=1)),
    "another body": ("I6", lambda t: replace(t, dead={"ordered": [replace(LETTER, body=b"3")]})),
    "no header": ("I6", lambda t: replace(t, dead={"ordered": [replace(LETTER, headers={})]})),
    "no cause": ("I6", lambda t: replace(t, dead={"ordered": [replace(LETTER, cause="")]})),
    "dead twice": ("I6", lambda t: replace(t, dead={"ordered": [LETTER, LETTER]})),
    "no copy": ("I6", lambda t: replace(t, graves=[])),
    "two copies": ("I6", lambda t: replace(t, graves=[2, 2])),
    "a copy of the living": ("I6", lambda t: replace(t, graves=[2, 3])),
    "too soon": ("I8", lambda t: replace(t, calls=[*t.calls[:2], call("call", 2, 1.2)])),
    "too often": ("I8", lambda t: replace(t, calls=[call("call", 4, 1.0)])),
    "nothing done": ("I14", lambda t: replace(t, effects={"ordered": [], "batch": []})),
}  # fmt: skip


def test_a_truth_without_fault_has_no_violation():
    assert violations(GOOD) == []


def test_a_group_that_acknowledges_first_may_have_lost_everything():
    lost = replace(GOOD, effects={"most": []}, dead={"most": []}, calls=[], graves=[])
    assert violations(replace(lost, may_lose=frozenset({"most"}))) == []
    assert violations(lost)


def test_a_redelivery_beside_a_waiting_retry_is_no_attempt_too_soon():
    calls = [call("fail", 1, 1.0), call("call", 1, 1.2), call("fail", 1, 1.2), call("call", 2, 1.3)]
    assert violations(replace(GOOD, calls=calls)) != []
    assert violations(replace(GOOD, calls=calls, may_repeat=frozenset({"ordered"}))) == []


@pytest.mark.parametrize("fault", SPOILT)
def test_every_fault_is_found(fault: str):
    invariant, spoil = SPOILT[fault]
    assert any(line.startswith(invariant) for line in violations(spoil(GOOD)))

"""Trap 13: a crash forgets attempts, doubles a dead letter, or a replay is done twice."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from reliable_mq import ReliableMQ
from tests.e2e.conftest import MakeMQ, StartProgram
from tests.e2e.program import RETRY, Folder, Task
from tests.e2e.waiting import until

pytestmark = pytest.mark.parametrize("kind", ["sql"], indirect=True)

ALWAYS = 1000


def fail_to_the_end(mq: ReliableMQ, folder: Folder) -> None:
    """Return when it lies dead, or has been tried much too often."""
    with mq.running():
        until(lambda: mq.dead_letters() or len(folder.notes("call")) > 15, mq.status)


def test_trap_13_attempts_are_counted_through_a_kill_and_end_in_one_dead_letter(
    build_mq: MakeMQ, start_program: StartProgram, folder: Folder, unique: str
) -> None:
    mq = build_mq()
    victim = start_program()
    mq.publish_direct(unique, Task(number=1, fails=ALWAYS), timeout=30)
    until(lambda: folder.notes("call", attempt=2), victim.said)
    victim.signal(signal.SIGKILL)
    assert victim.wait() == -9
    fail_to_the_end(mq, folder)
    attempts = [call["attempt"] for call in folder.notes("call")]
    assert sorted(set(attempts)) == list(range(1, RETRY.max_attempts + 1))
    assert len(attempts) <= RETRY.max_attempts + 1, "only the one that was killed is made again"
    (letter,) = mq.dead_letters()
    assert letter.attempts == RETRY.max_attempts


def test_trap_13_a_replay_is_done_once_however_often_it_is_asked_for(
    build_mq: MakeMQ, folder: Folder, seen: Callable[[], list[str]], unique: str
) -> None:
    mq = build_mq()
    mq.publish_direct(unique, Task(number=1, fails=RETRY.max_attempts), timeout=30)
    fail_to_the_end(mq, folder)
    (letter,) = mq.dead_letters()
    assert [mq.replay(letter.id) for _ in range(3)] == [True, False, False]
    assert mq.dead_letters() == []
    fail_to_the_end(mq, folder)
    (again,) = mq.dead_letters()
    assert again.attempts == RETRY.max_attempts
    assert seen() == []

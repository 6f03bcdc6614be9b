"""Trap 19: a crash test that lets the process clean up shows nothing about crashes.

A killed process gives nothing back: it stays a member, its leases stay its own until they
expire, and that is what the others have to cope with.
"""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
from sqlalchemy import Engine, text

from tests.e2e.conftest import MakeMQ, StartProgram
from tests.e2e.processes import Program
from tests.e2e.program import Folder, Task
from tests.e2e.waiting import until

pytestmark = pytest.mark.parametrize("kind", ["sql"], indirect=True)


def leases(engine: Engine) -> int:
    """How many leases have an owner."""
    with engine.connect() as connection:
        query = "SELECT count(*) FROM reliable_mq_lease WHERE owner IS NOT NULL"
        return int(connection.execute(text(query)).scalar_one())


def handled_one(start_program: StartProgram, folder: Folder) -> Program:
    program = start_program()
    until(lambda: folder.notes("call", pid=program.pid), program.said)
    return program


def test_trap_19_a_killed_process_gives_nothing_back_and_others_take_over_all_the_same(
    build_mq: MakeMQ,
    start_program: StartProgram,
    folder: Folder,
    engine: Engine,
    seen: Callable[[], list[str]],
    unique: str,
) -> None:
    mq = build_mq()
    with mq.transaction():
        mq.publish(unique, Task(number=1))
    victim = handled_one(start_program, folder)
    victim.signal(signal.SIGKILL)
    assert victim.wait() == -9
    assert leases(engine) > 0, "it had no time to clean up"
    with mq.transaction():
        mq.publish(unique, Task(number=2))
    with mq.running():
        until(lambda: sorted(seen()) == ["1", "2"], mq.status)


def test_trap_19_a_process_that_ends_politely_would_have_shown_nothing_of_that(
    build_mq: MakeMQ, start_program: StartProgram, folder: Folder, engine: Engine, unique: str
) -> None:
    mq = build_mq()
    with mq.transaction():
        mq.publish(unique, Task(number=1))
    polite = handled_one(start_program, folder)
    polite.signal(signal.SIGTERM)
    assert polite.wait() == 0
    assert leases(engine) == 0

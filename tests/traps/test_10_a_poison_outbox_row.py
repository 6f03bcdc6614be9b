"""Trap 10: one bad row makes the relay spin, blocks the others, or vanishes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import Engine, text

from tests.e2e.conftest import MakeMQ
from tests.e2e.program import Task
from tests.e2e.waiting import until

pytestmark = pytest.mark.parametrize("kind", ["sql"], indirect=True)
Seen = Callable[[], list[str]]


def test_trap_10_a_row_that_cannot_be_read_is_held_and_shown_and_the_others_go_on(
    build_mq: MakeMQ, engine: Engine, seen: Seen, unique: str
) -> None:
    mq = build_mq()
    with mq.transaction():
        for number, key in enumerate(("before", "poison", "behind")):
            mq.publish(unique, Task(number=number), key=key)
    with engine.begin() as connection:
        broken = "UPDATE reliable_mq_outbox SET headers = :junk WHERE message_key = :key"
        connection.execute(text(broken), {"junk": b"no json", "key": b"poison"})
    assert mq.run_until_idle(60).sent == 2
    assert sorted(seen()) == ["0", "2"]
    outbox = mq.status().outbox
    assert (outbox.pending, outbox.held) == (0, 1)


def test_trap_10_the_relay_outlives_whatever_its_loop_meets(
    build_mq: MakeMQ, engine: Engine, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    def rename(old: str, new: str) -> None:
        with engine.begin() as connection:
            connection.execute(text(f"ALTER TABLE {old} RENAME TO {new}"))

    mq = build_mq()
    with mq.running(consume=False):
        rename("reliable_mq_outbox", "away")
        until(lambda: "the relay waits" in caplog.text, "a failure of the loop")
        rename("away", "reliable_mq_outbox")
        with mq.transaction():
            mq.publish(unique, Task(number=1))
        until(lambda: mq.status().outbox.pending == 0, mq.status)

"""Trap 1: a message is acknowledged before what it does is durable, on error paths too."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import Engine, text

from reliable_mq import Reject
from tests.e2e.conftest import MakeMQ, StartProgram
from tests.e2e.program import IN_HANDLER, Folder, Task
from tests.e2e.shop import Order
from tests.e2e.waiting import until


@pytest.fixture
def database_url(postgresql_url: str) -> str:
    return postgresql_url


def test_trap_01_a_process_killed_in_its_handler_has_acknowledged_nothing(
    build_mq: MakeMQ,
    start_program: StartProgram,
    folder: Folder,
    seen: Callable[[], list[str]],
    unique: str,
) -> None:
    # No process stands still here, so none need be noticed by its open transaction.
    mq = build_mq(consumer={"idle_in_transaction": 60})
    victim = start_program(E2E_CRASH=IN_HANDLER)
    mq.publish_direct(unique, Task(number=1, crash=True), timeout=30)
    assert victim.wait() == -9
    assert seen() == [], "its effect went with it"
    with mq.running():
        # RabbitMQ takes back later than the process dies: until then nothing is seen to be left.
        until(lambda: seen() == ["1"], mq.status, seconds=60)
    mq.run_until_idle(60)
    assert seen() == ["1"]
    assert [call["attempt"] for call in folder.notes("call")] == [1, 1]


@pytest.mark.parametrize("kind", ["redis"], indirect=True)
def test_trap_01_a_failure_that_cannot_be_written_down_is_not_acknowledged(
    make_mq: MakeMQ, engine: Engine, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    mq = make_mq()

    @mq.handler(unique)
    def handle(order: Order) -> None:
        raise Reject("unknown order")

    def ended() -> bool:
        return mq.status().groups[unique, "billing"].lag == 0

    mq.declare()
    with mq.running():
        _rename(engine, "reliable_mq_dead_letter", "away")
        mq.publish_direct(unique, Order(id=1), timeout=30)
        until(lambda: "the database failed" in caplog.text, "the failure")
        _rename(engine, "away", "reliable_mq_dead_letter")
        until(ended, mq.status)
    assert len(mq.dead_letters()) == 1


def _rename(engine: Engine, old: str, new: str) -> None:
    with engine.begin() as connection:
        connection.execute(text(f"ALTER TABLE {old} RENAME TO {new}"))

"""``async def`` handlers: the same steps, on an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest
from sqlalchemy import Engine, insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from reliable_mq import Delivery, ReliableMQ, RetryPolicy
from reliable_mq.testing import Harness
from tests.consumer.conftest import effects, unique_effects

Enter = Callable[[], Harness]
Seen = Callable[[], list[str]]


def test_an_async_handler_commits_its_effects_once(
    mq: ReliableMQ, harness: Enter, seen: Seen
) -> None:
    @mq.handler("t", concurrency=4)
    async def handle(number: int, session: AsyncSession, connection: AsyncConnection) -> None:
        await asyncio.sleep(0)
        await session.execute(insert(effects).values(what=f"session {number}"))
        await connection.execute(insert(effects).values(what=f"connection {number}"))

    h = harness()
    h.deliver("t", 1, message_id="a")
    assert h.deliver("t", 1, message_id="a").result == "duplicate"
    assert seen() == ["session 1", "connection 1"]


def test_async_handlers_run_beside_each_other(mq: ReliableMQ, harness: Enter) -> None:
    met = 0
    both: asyncio.Event | None = None

    @mq.handler("t", concurrency=2, guarantee="at-least-once", timeout=10)
    async def handle(number: int) -> None:
        nonlocal met, both
        both = both or asyncio.Event()
        met += 1
        if met == 2:
            both.set()
        await both.wait()

    h = harness()
    for number in range(2):
        h.broker.inject("t", str(number).encode())
    assert h.run().handled == 2


def test_a_timeout_cancels_the_attempt_and_undoes_its_effects(
    mq: ReliableMQ, harness: Enter, seen: Seen
) -> None:
    @mq.handler("t", timeout=0.05, retry=RetryPolicy.never())
    async def handle(number: int, session: AsyncSession) -> None:
        await session.execute(insert(effects).values(what="never"))
        await asyncio.Event().wait()

    h = harness()
    assert h.deliver("t", 1).result == "dead-lettered"
    assert "TimeoutError" in h.dead_letters()[0].cause
    assert seen() == []


def test_a_cancelled_handler_is_not_a_success(mq: ReliableMQ, harness: Enter, seen: Seen) -> None:
    @mq.handler("t", retry=RetryPolicy.never())
    async def handle(number: int, session: AsyncSession) -> None:
        await session.execute(insert(effects).values(what="never"))
        raise asyncio.CancelledError

    h = harness()
    assert h.deliver("t", 1).result == "dead-lettered"
    assert h.deliver("t", 2).result == "dead-lettered"
    assert seen() == []


def test_a_swallowed_database_error_does_not_end_as_handled(
    mq: ReliableMQ, harness: Enter, seen: Seen
) -> None:
    @mq.handler("t", retry=RetryPolicy.never())
    async def handle(number: int, session: AsyncSession) -> None:
        await session.execute(insert(effects).values(what="never"))
        for _ in range(2):
            with suppress(DBAPIError):
                await session.execute(insert(unique_effects).values(what="x"))

    assert harness().deliver("t", 1).result == "dead-lettered"
    assert seen() == []


def test_publish_in_an_async_handler_joins_its_transaction(mq: ReliableMQ, harness: Enter) -> None:
    mq.topic("out")

    @mq.handler("t", retry=RetryPolicy(initial_delay=1))
    async def handle(number: int, delivery: Delivery) -> None:
        mq.publish("out", delivery.attempt)
        await asyncio.sleep(0)
        if delivery.attempt == 1:
            raise OSError

    h = harness()
    h.deliver("t", 1)
    h.run(through=30)
    assert [m.decode(int) for m in h.published("out")] == [2]


def test_an_async_around_is_entered_on_the_loop(mq: ReliableMQ, harness: Enter) -> None:
    steps: list[str] = []

    @mq.around
    @asynccontextmanager
    async def around(delivery: Delivery) -> AsyncIterator[None]:
        await asyncio.sleep(0)
        steps.append("in")
        yield
        steps.append("out")

    @mq.handler("t")
    async def handle(number: int) -> None:
        steps.append("handler")

    harness().deliver("t", 1)
    assert steps == ["in", "handler", "out"]


def test_under_async_with_handlers_run_on_the_callers_loop(mq: ReliableMQ, engine: Engine) -> None:
    loops: list[asyncio.AbstractEventLoop] = []

    @mq.handler("t", transaction_size=3)
    async def handle(number: int, session: AsyncSession) -> None:
        loops.append(asyncio.get_running_loop())
        await session.execute(insert(effects).values(what=str(number)))

    async def main() -> None:
        async with Harness(mq, engine) as h:
            for number in range(5):
                h.broker.inject("t", str(number).encode())
            assert (await h.arun()).handled == 5
            assert (await h.adeliver("t", 9)).result == "handled"
        assert set(loops) == {asyncio.get_running_loop()}

    asyncio.run(main())


def test_blocking_calls_on_a_loop_name_their_twin(mq: ReliableMQ) -> None:
    async def main() -> None:
        for name, twin in [
            ("declare", "adeclare"), ("status", "astatus"), ("dead_letters", "adead_letters"),
            ("run_until_idle", "arun_until_idle"), ("close", "aclose"),
        ]:  # fmt: skip
            with pytest.raises(RuntimeError, match=twin):
                getattr(mq, name)()
        with pytest.raises(RuntimeError, match="apublish_direct"):
            mq.publish_direct("t", 1)

    asyncio.run(main())

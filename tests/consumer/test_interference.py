"""Handlers and surroundings that do what none should: the message is kept, the worker goes on."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncSession

from reliable_mq import ConsumerSettings, Delivery, ReliableMQ, Retry, RetryPolicy, Settings
from reliable_mq.testing import Harness


class Interrupt(BaseException):
    """What gevent's and eventlet's time-outs are too."""


def put(h: Harness, *numbers: int) -> None:
    for number in numbers:
        h.broker.inject("t", b"%d" % number, [("message-id", b"%d" % number)])


@pytest.mark.parametrize("transaction_size", [1, 5])
def test_an_around_that_swallows_the_error_does_not_lose_the_message(
    mq: ReliableMQ, transaction_size: int
) -> None:
    mq.around(lambda delivery: contextlib.suppress(Exception))

    @mq.handler("t", retry=RetryPolicy.never(), transaction_size=transaction_size)
    def handle(number: int) -> None:
        if number == 2:
            raise OSError("hidden")

    with Harness(mq) as h:
        put(h, 1, 2, 3)
        counts = h.run()
        assert (counts.handled, counts.dead_lettered) == (2, 1)
        assert h.dead_letters()[0].cause == "OSError: hidden"


def test_an_async_around_that_swallows_the_error_does_not_lose_the_message(mq: ReliableMQ) -> None:
    @contextlib.asynccontextmanager
    async def hiding(delivery: Delivery):
        with contextlib.suppress(OSError):
            yield

    mq.around(hiding)

    @mq.handler("t", retry=RetryPolicy.never())
    async def handle(number: int) -> None:
        raise OSError

    with Harness(mq) as h:
        assert h.deliver("t", 1).result == "dead-lettered"


@pytest.mark.parametrize("transaction_size", [1, 5])
@pytest.mark.parametrize("error", [Interrupt, asyncio.CancelledError, SystemExit])
def test_whatever_a_handler_raises_is_its_failure_and_not_the_end_of_its_worker(
    mq: ReliableMQ, error: type[BaseException], transaction_size: int
) -> None:
    @mq.handler("t", retry=RetryPolicy.never(), transaction_size=transaction_size)
    def handle(number: int) -> None:
        if number == 1:
            raise error

    with Harness(mq) as h:
        put(h, 1, 2, 3)
        counts = h.run()
        assert (counts.handled, counts.dead_lettered) == (2, 1)
        assert error.__name__ in h.dead_letters()[0].cause


def test_whatever_an_around_raises_is_a_failure_and_not_the_end_of_the_worker(
    mq: ReliableMQ,
) -> None:
    @contextlib.contextmanager
    def raising(delivery: Delivery) -> Iterator[None]:
        if delivery.message.id == "1":
            raise Interrupt
        yield

    mq.around(raising)

    @mq.handler("t", retry=RetryPolicy.never())
    def handle(number: int) -> None: ...

    with Harness(mq) as h:
        put(h, 1, 2)
        assert h.run().handled == 1
        assert len(h.dead_letters()) == 1


@pytest.mark.parametrize("transaction_size", [1, 5])
def test_an_async_handler_that_cancels_its_own_task_has_failed_and_others_are_handled(
    mq: ReliableMQ, transaction_size: int
) -> None:
    @mq.handler("t", retry=RetryPolicy.never(), transaction_size=transaction_size)
    async def handle(number: int) -> None:
        if number == 1:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)

    with Harness(mq) as h:
        put(h, 1, 2, 3)
        counts = h.run()
        assert (counts.handled, counts.dead_lettered) == (2, 1)


def test_without_order_a_retry_of_the_same_key_does_not_hide_one_that_is_due_before_it(
    mq: ReliableMQ,
) -> None:
    made: list[tuple[int, int]] = []

    @mq.handler("t", retry=RetryPolicy(max_delay=1000))
    def handle(number: int, delivery: Delivery) -> None:
        made.append((number, delivery.attempt))
        if delivery.attempt == 1:
            raise Retry(after=100 if number == 1 else 1)

    with Harness(mq) as h:
        h.deliver("t", 1, key="a")
        h.deliver("t", 2, key="a")
        h.run(through=5)
        assert made == [(1, 1), (2, 1), (2, 2)]


def test_a_start_that_is_cancelled_leaves_nothing_running(
    mq: ReliableMQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    @mq.handler("t")
    def handle(number: int) -> None: ...

    in_declare, go_on = threading.Event(), threading.Event()

    def declare() -> None:
        in_declare.set()
        assert go_on.wait(60)

    async def main() -> None:
        async with Harness(mq):
            mq._runtime.declared = False
            monkeypatch.setattr(mq, "declare", declare)
            starting = asyncio.create_task(mq.running().__aenter__())
            await asyncio.to_thread(in_declare.wait, 60)
            starting.cancel()
            await asyncio.sleep(0)
            go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await starting
            assert set((await mq.astatus()).parts.values()) == {"off"}

    asyncio.run(main())


def test_an_async_handler_that_outlasts_the_stop_is_cancelled_on_the_callers_loop(
    engine: Engine,
) -> None:
    mq = ReliableMQ(
        Settings(
            broker_url="memory://unused",
            group="tests",
            consumer=ConsumerSettings(shutdown_timeout=0.2),
        )
    )
    began, ended = asyncio.Event(), asyncio.Event()

    @mq.handler("t")
    async def handle(number: int, session: AsyncSession) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def main() -> None:
        async with Harness(mq, engine) as h:
            put(h, 1)
            async with mq.running():
                await asyncio.wait_for(began.wait(), 10)
            assert ended.is_set()
            assert h.broker.lag("t", "tests") == 1
            assert not h.dead_letters()

    asyncio.run(main())

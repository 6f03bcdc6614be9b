"""A user's project, as a type checker sees it: mypy and pyright, both strict, find nothing here.

A comment that ignores an error is a claim that there is one: it fails when it is not needed.
"""

from datetime import timedelta
from typing import assert_type

from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from reliable_mq import (
    Counts,
    DeadLetter,
    Delivery,
    Message,
    ReliableMQ,
    RetryPolicy,
    Settings,
    Status,
    Topic,
)


class Order(BaseModel):
    id: int
    customer: str


mq = ReliableMQ(
    Settings(broker_url="kafka://localhost:9092", database_url="sqlite:///app.db", group="app")
)

orders = mq.topic("orders", Order, partitions=12)
assert_type(orders, Topic[Order])
charges = mq.topic("charges")


@mq.handler(
    orders,
    group="billing",
    ordered=True,
    concurrency=8,
    retry=RetryPolicy(max_attempts=6, initial_delay=1, max_delay=timedelta(minutes=5)),
)
def charge(order: Order, session: Session, delivery: Delivery) -> None:
    session.flush()
    mq.publish(charges, {"order": order.id, "attempt": delivery.attempt}, key=order.customer)


@mq.handler("orders", group="mail", timeout=10)
async def mail(order: Order, session: AsyncSession) -> None:
    await session.flush()


def handlers_stay_what_they_were(order: Order, session: Session, delivery: Delivery) -> None:
    charge(order, session, delivery)
    charge("no order", session, delivery)  # type: ignore[arg-type]


def payloads_are_checked(session: Session) -> None:
    order = Order(id=1, customer="ann")
    assert_type(mq.publish(orders, order, key="ann", session=session), Message)
    mq.publish("orders", {"anything": "goes"})
    mq.publish(orders, {"id": 1, "customer": "ann"})  # type: ignore[misc]
    mq.publish_direct(orders, order, timeout=timedelta(seconds=5))


def transactions() -> None:
    with mq.transaction() as session:
        assert_type(session, Session)


async def asynchronous_transactions() -> None:
    async with mq.transaction() as session:
        assert_type(session, AsyncSession)
        mq.publish(orders, Order(id=2, customer="ben"), session=session)


def operations() -> None:
    with mq.running(consume=False):
        assert_type(mq.run_until_idle(timeout=5), Counts)
    assert_type(mq.status(), Status)
    assert_type(mq.dead_letters("orders", limit=10), list[DeadLetter])
    assert_type(mq.replay(1), bool)

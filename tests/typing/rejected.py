"""Mistakes that mypy and pyright must find. Never run.

Each line that ends in an ignore comment is a mistake, and both tools report a comment that
ignores nothing: what is found and what is marked cannot differ.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from reliable_mq import (
    Delivery,
    Guarantee,
    Message,
    RelaySettings,
    ReliableMQ,
    Retry,
    RetryPolicy,
    Settings,
)
from reliable_mq.events import BrokerDown, MessageSent


class Order(BaseModel):
    id: int


class Refund(BaseModel):
    id: int


@dataclass
class Line:
    sku: str


mq = ReliableMQ()
orders = mq.topic("orders", Order)
lines = mq.topic("lines", Line)


# --- payloads of a typed topic -------------------------------------------------------------------

mq.publish(orders, Refund(id=1))  # type: ignore[misc]
mq.publish(orders, {"id": 1})  # type: ignore[misc]
mq.publish(orders, b"{}")  # type: ignore[misc]
mq.publish(orders, None)  # type: ignore[misc]
mq.publish(lines, Order(id=1))  # type: ignore[misc]
mq.publish_direct(orders, Refund(id=1))  # type: ignore[misc]


async def publish() -> None:
    await mq.apublish_direct(orders, Refund(id=1))  # type: ignore[misc]


# --- arguments of publish ------------------------------------------------------------------------

mq.publish(orders)  # type: ignore[call-overload]
mq.publish(1, Order(id=1))  # type: ignore[call-overload]
mq.publish(orders, Order(id=1), "key")  # type: ignore[call-overload]
mq.publish(orders, Order(id=1), key=b"key")  # type: ignore[call-overload]
mq.publish(orders, Order(id=1), headers={"n": 1})  # type: ignore[dict-item]
mq.publish(orders, Order(id=1), session="session")  # type: ignore[call-overload]
mq.publish(orders, Order(id=1), partition=1)  # type: ignore[call-overload]
mq.publish_direct(orders, Order(id=1), session=Session())  # type: ignore[call-overload]

# --- settings ------------------------------------------------------------------------------------

Settings(brokr_url="sql://")  # type: ignore[call-arg]
Settings(broker_url=b"sql://")  # type: ignore[arg-type]
Settings(relay=RelaySettings(leese=30))  # type: ignore[call-arg]
Settings(relay={"lease": 30})  # type: ignore[arg-type]
Settings("sql://")  # type: ignore[call-arg]
RetryPolicy(max_atempts=3)  # type: ignore[call-arg]
RetryPolicy(initial_delay="1s")  # type: ignore[arg-type]
RetryPolicy(reject_on=(KeyboardInterrupt,))  # type: ignore[arg-type]
ReliableMQ(broker_url="sql://")  # type: ignore[call-arg]
ReliableMQ("sql://")  # type: ignore[arg-type]
print(Settings().broker_uri)  # type: ignore[attr-defined]

# --- handlers ------------------------------------------------------------------------------------

mq.handler(orders, guarantee="once")  # type: ignore[arg-type]
mq.handler(orders, guarantee=Guarantee.ONCE)  # type: ignore[attr-defined]
mq.handler(orders, "billing")  # type: ignore[call-arg]
mq.handler(orders, order=True)  # type: ignore[call-arg]
mq.handler(orders, concurrency="8")  # type: ignore[arg-type]
mq.handler(orders, retry=3)  # type: ignore[arg-type]
mq.handler(orders, timeout="5s")  # type: ignore[arg-type]
mq.handler(5)  # type: ignore[arg-type]
mq.handler(orders)(5)  # type: ignore[type-var]
mq.topic("orders", Order, 12)  # type: ignore[call-overload]
mq.topic(name="orders")  # type: ignore[call-overload]


@mq.handler(orders, group="billing")
def charge(order: Order, session: Session) -> int:
    return order.id


# The decorated function keeps its type.
charge(Refund(id=1), Session())  # type: ignore[arg-type]
charge(Order(id=1))  # type: ignore[call-arg]
text: str = charge(Order(id=1), Session())  # type: ignore[assignment]


@mq.around  # type: ignore[arg-type]
@contextmanager
def context(order: Order) -> Generator[None]:
    yield


# --- what comes back -----------------------------------------------------------------------------

message = Message(id="1", topic="orders")
message.id = "2"  # type: ignore[misc]
message.headers["a"] = "b"  # type: ignore[index]
refund: Refund = message.decode(Order)  # type: ignore[assignment]
Message("1", "orders")  # type: ignore[call-arg]
Delivery(message=message, group="g").attempt = 2  # type: ignore[misc]
Retry("busy", after="5s")  # type: ignore[arg-type]
mq.replay("1")  # type: ignore[arg-type]
mq.dead_letters(1)  # type: ignore[arg-type]
mq.run(relay="yes")  # type: ignore[arg-type]


def sent(event: MessageSent) -> None: ...


mq.events.subscribe(BrokerDown, sent)  # type: ignore[arg-type]


def sync_transaction() -> None:
    with mq.transaction() as session:
        asynchronous: AsyncSession = session  # type: ignore[assignment]
        print(asynchronous)


async def async_transaction() -> None:
    async with mq.transaction() as session:
        synchronous: Session = session  # type: ignore[assignment]
        print(synchronous)

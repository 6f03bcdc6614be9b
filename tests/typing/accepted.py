"""What an application writes. Never run: mypy and pyright must have nothing to say about it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Annotated, Any, Literal, assert_type

from pydantic import BaseModel, Field
from sqlalchemy import Connection, MetaData, create_engine
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from typing_extensions import TypedDict

from reliable_mq import (
    ConfigurationError,
    ConsumerSettings,
    Counts,
    DeadLetter,
    DeadLetterSettings,
    DecodeError,
    Delivery,
    Guarantee,
    InboxSettings,
    InvalidMessageError,
    Message,
    MissingExtraError,
    NoTransactionError,
    PublishRejectedError,
    PublishUnconfirmedError,
    Reject,
    RelaySettings,
    ReliableMQ,
    ReliableMQError,
    Retry,
    RetryPolicy,
    Settings,
    StaleDeliveryError,
    Status,
    Topic,
    TransportError,
)
from reliable_mq.events import BrokerDown, Event, MessageSent

# --- settings ------------------------------------------------------------------------------------

Settings()
settings = Settings(
    broker_url="kafka://localhost:9092",
    database_url="postgresql+psycopg://app@localhost/app",
    group="billing",
    client_options={"linger.ms": 5, "sasl.password": "secret"},
    table_prefix="rmq_",
    db_schema="app",
    auto_declare=False,
    max_message_bytes=500_000,
    max_header_count=50,
    max_header_bytes=32_768,
    retry=RetryPolicy(max_attempts=6, initial_delay=1, max_delay=timedelta(minutes=5)),
    relay=RelaySettings(batch_size=100, poll_interval=0.5, lease=60, publish_timeout=30),
    consumer=ConsumerSettings(
        prefetch=100,
        lease=timedelta(minutes=1),
        idle_in_transaction=30,
        shutdown_timeout=10,
        max_waiting_retries=1000,
    ),
    inbox=InboxSettings(retention=timedelta(days=30)),
    dead_letter=DeadLetterSettings(
        publish=True, topic="dead.{topic}.{group}", max_error_bytes=1024
    ),
)
assert_type(settings.replace(group="shipping"), Settings)


class ShopSettings(Settings):
    rate: float = 0.5


assert_type(ShopSettings(rate=1.0, group="shop").replace(rate=2.0), ShopSettings)

RetryPolicy(
    max_attempts=8,
    immediate_attempts=2,
    initial_delay=timedelta(seconds=1),
    multiplier=3,
    max_delay=600,
    jitter=0,
    reject_on=(KeyError, ValueError),
)
assert_type(RetryPolicy.never(), RetryPolicy)

# --- the application -----------------------------------------------------------------------------

mq = ReliableMQ(settings)
ReliableMQ()
ReliableMQ(engine=create_engine("sqlite://"))
ReliableMQ(
    Settings(),
    async_engine=create_async_engine("sqlite+aiosqlite://"),
    async_session_factory=async_sessionmaker(),
)
engine = create_engine("sqlite://")
ReliableMQ(engine=engine, session_factory=sessionmaker(engine))


class ShopMQ(ReliableMQ):
    pass


class Order(BaseModel):
    id: int
    customer: str


class Refund(BaseModel):
    kind: Literal["refund"]


class Charge(BaseModel):
    kind: Literal["charge"]


@dataclass
class Line:
    sku: str


class Item(TypedDict):
    sku: str


Payment = Annotated[Refund | Charge, Field(discriminator="kind")]

orders = mq.topic("orders", Order, partitions=12, replication_factor=3, options={"retention.ms": 1})
charges = mq.topic("charges")
lines = mq.topic("lines", Line)
items = mq.topic("items", Item)
raw = mq.topic("raw", bytes)
payments: Topic[Refund | Charge] = mq.topic("payments", Payment)
assert_type(orders, Topic[Order])
assert_type(charges, Topic[Any])
assert_type(lines, Topic[Line])
assert_type(orders.name, str)
assert_type(orders.partitions, int | None)


# --- handlers ------------------------------------------------------------------------------------


@mq.handler(
    orders,
    group="billing",
    ordered=True,
    concurrency=8,
    retry=RetryPolicy(max_attempts=6, initial_delay=1, max_delay=300),
)
def charge(order: Order, session: Session, delivery: Delivery) -> None:
    assert_type(mq.publish(charges, {"order": order.id}, key=order.customer), Message)
    session.flush()
    assert_type(delivery.message, Message)
    assert_type(delivery.attempt, int)
    assert_type(delivery.redelivered, bool)
    assert_type(delivery.received_at, datetime)


@mq.handler("orders", group="audit", guarantee="at-least-once", transaction_size=1)
async def audit(
    order: dict[str, Any], session: AsyncSession, connection: AsyncConnection, mq: ReliableMQ
) -> None:
    mq.publish("audited", order, session=session)


@mq.handler(payments, guarantee=Guarantee.AT_MOST_ONCE)
def paid(payment: Payment, connection: Connection) -> None:
    if isinstance(payment, Refund):
        raise Reject("refunds are closed")
    raise Retry("busy", after=timedelta(seconds=5))


@mq.handler(raw, group="raw", timeout=timedelta(seconds=5))
async def handle_raw(message: Message, flag: bool = False) -> None:
    assert_type(message.body, bytes)
    assert_type(message.decode(Order), Order)
    assert_type(message.decode(list[Order]), list[Order])
    assert_type(message.key, str | None)
    assert_type(message.time, datetime)


class Service:
    def ship(self, order: Order, session: Session) -> bool:
        return True

    async def __call__(self, order: Order) -> None: ...


def priced(rate: float, order: Order) -> None: ...


mq.handler(orders, group="method")(Service().ship)
mq.handler(orders, group="object")(Service())
mq.handler(orders, group="partial")(partial(priced, 0.5))

# The decorator gives the function back as it is, for unit tests.
assert_type(
    charge(
        Order(id=1, customer="ann"),
        Session(),
        Delivery(message=Message(id="1", topic="t"), group="g"),
    ),
    None,
)
assert_type(Service().ship(Order(id=1, customer="ann"), Session()), bool)


@mq.around
@contextmanager
def application_context(delivery: Delivery) -> Generator[None]:
    yield


@mq.around
@asynccontextmanager
async def async_context(delivery: Delivery) -> AsyncGenerator[None]:
    yield


# --- publishing ----------------------------------------------------------------------------------


def publish_sync(
    session: Session,
    connection: Connection,
    scoped: scoped_session[Session],
) -> None:
    mq.publish(orders, Order(id=1, customer="ann"), key="ann", session=session)
    mq.publish(charges, {"any": ["json", 1, None]}, session=connection)
    mq.publish(lines, Line("a"), session=scoped)
    mq.publish(items, Item(sku="a"), headers={"trace": "1", "blob": b"\x00"})
    mq.publish(raw, b"\x00", content_type="application/x-avro", message_id="a-1")
    mq.publish(payments, Refund(kind="refund"))
    mq.publish("plain", Order(id=1, customer="ann"))
    assert_type(mq.publish_direct(orders, Order(id=1, customer="ann"), timeout=5), Message)
    with mq.transaction() as current, mq.transaction() as nested:
        assert_type(current, Session)
        assert_type(nested, Session)
        mq.publish(orders, Order(id=1, customer="ann"))


async def publish_async(
    session: AsyncSession,
    connection: AsyncConnection,
    scoped: async_scoped_session[AsyncSession],
) -> None:
    mq.publish(orders, Order(id=1, customer="ann"), session=session)
    mq.publish("plain", 1, session=connection)
    mq.publish("plain", None, session=scoped)
    message = await mq.apublish_direct("plain", [1], timeout=timedelta(seconds=5))
    assert_type(message, Message)
    async with mq.transaction() as current:
        assert_type(current, AsyncSession)
        mq.publish(orders, Order(id=1, customer="ann"))


# --- running, looking, mending -------------------------------------------------------------------


def operate() -> None:
    mq.declare()
    mq.run()
    mq.run(relay=True, consume=False)
    with mq.running(consume=False):
        pass
    counts = mq.run_until_idle(10, relay=False)
    assert_type(counts, Counts)
    assert_type(counts.sent + counts.handled + counts.duplicates, int)
    assert_type(counts.retried + counts.dead_lettered, int)
    status = mq.status()
    assert_type(status, Status)
    assert_type(status.outbox.pending, int)
    assert_type(status.outbox.oldest_age, float | None)
    assert_type(status.parts["relay"], str)
    assert_type(status.groups["orders", "billing"].dead_letters, int)
    letters = mq.dead_letters("orders", "billing", limit=10, after=5)
    assert_type(letters, list[DeadLetter])
    assert_type(mq.replay(letters[0].id), bool)
    assert_type(mq.discard(letters[0].id), bool)
    assert_type(letters[0].cause, str)
    mq.include_tables(MetaData())
    mq.close()
    with ReliableMQ() as other:
        assert_type(other, ReliableMQ)
    with ShopMQ() as shop:
        assert_type(shop, ShopMQ)


async def operate_async() -> None:
    await mq.adeclare()
    async with mq.running():
        await asyncio.sleep(1)
    assert_type(await mq.arun_until_idle(timedelta(seconds=5)), Counts)
    assert_type(await mq.astatus(), Status)
    assert_type(await mq.adead_letters(), list[DeadLetter])
    assert_type(await mq.areplay(1), bool)
    assert_type(await mq.adiscard(1), bool)
    await mq.aclose()
    async with ReliableMQ() as other:
        assert_type(other, ReliableMQ)


def sent(event: MessageSent) -> None:
    print(event.topic, event.age)


def anything(event: Event) -> None: ...


end = mq.events.subscribe(MessageSent, sent)
mq.events.subscribe(BrokerDown, anything)
mq.events.subscribe(Event, anything)
end()


# --- errors --------------------------------------------------------------------------------------


def errors() -> None:
    try:
        mq.publish_direct(orders, Order(id=1, customer="ann"))
    except PublishUnconfirmedError as error:
        assert_type(error, PublishUnconfirmedError)
    except (PublishRejectedError, InvalidMessageError, NoTransactionError):
        pass
    except (MissingExtraError, StaleDeliveryError, DecodeError, TransportError):
        pass
    except ConfigurationError as wrong:
        _value: ValueError = wrong
    except ReliableMQError:
        raise

"""Shop and accounting: their tables, the topic between them, and the handler.

Configured by the environment (``RELIABLE_MQ_BROKER_URL``, ``RELIABLE_MQ_DATABASE_URL``), so that
every process of the example, and the ``reliable-mq`` command, sees the same.
"""

from __future__ import annotations

import os
import zlib

from pydantic import BaseModel
from sqlalchemy import BigInteger, Index, Integer, String, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from reliable_mq import Delivery, ReliableMQ, RetryPolicy, Settings

BIG = BigInteger().with_variant(Integer, "sqlite")


class Base(DeclarativeBase):
    """The tables of the example."""


class Purchase(Base):
    """What the shop sold."""

    __tablename__ = "cdnow_purchase"

    line: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    customer: Mapped[str] = mapped_column(String(16))
    number: Mapped[int] = mapped_column(Integer)
    cents: Mapped[int] = mapped_column(Integer)


class Entry(Base):
    """A line of the ledger. No unique key: a purchase applied twice must be seen, not refused."""

    __tablename__ = "cdnow_ledger"
    __table_args__ = (Index("cdnow_ledger_customer", "customer", "id"),)

    id: Mapped[int] = mapped_column(BIG, primary_key=True, autoincrement=True)
    customer: Mapped[str] = mapped_column(String(16))
    number: Mapped[int] = mapped_column(Integer)
    cents: Mapped[int] = mapped_column(Integer)
    balance: Mapped[int] = mapped_column(BIG)


class Purchased(BaseModel):
    """The message: a customer paid so many cents in purchase *number* of theirs."""

    line: int
    customer: str
    number: int
    cents: int


class LedgerBusyError(Exception):
    """The failure that is injected."""


mq = ReliableMQ(Settings())
purchases = mq.topic(os.environ.get("CDNOW_TOPIC", "cdnow.purchases"), Purchased, partitions=8)

FAILING_ONE_IN = 200


def attempts_that_fail(line: int) -> int:
    """Return how many attempts at a line are made to fail: none, one, or several."""
    if zlib.crc32(str(line).encode()) % FAILING_ONE_IN:
        return 0
    return 1 + line % 3


@mq.handler(
    purchases,
    group="accounting",
    ordered=True,
    concurrency=4,
    transaction_size=50,
    retry=RetryPolicy(max_attempts=8, initial_delay=0.05, max_delay=1.0),
)
def book(purchase: Purchased, session: Session, delivery: Delivery) -> None:
    """Continue the customer's balance: right only if every earlier purchase is booked, once."""
    if delivery.attempt <= attempts_that_fail(purchase.line):
        raise LedgerBusyError(f"line {purchase.line}, attempt {delivery.attempt}")
    last = session.scalars(
        select(Entry).where(Entry.customer == purchase.customer).order_by(Entry.id.desc()).limit(1)
    ).first()
    session.add(
        Entry(
            customer=purchase.customer,
            number=purchase.number,
            cents=purchase.cents,
            balance=(last.balance if last else 0) + purchase.cents,
        )
    )
    session.flush()

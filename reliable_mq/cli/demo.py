"""The whole chain on one temporary SQLite file, with a failure, a duplicate and a dead letter."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from pydantic import BaseModel
from rich.markup import escape
from sqlalchemy import Column, Integer, MetaData, String, Table, insert, select
from sqlalchemy.orm import Session

from reliable_mq.app import ReliableMQ
from reliable_mq.cli.output import console, print_table
from reliable_mq.message import Delivery
from reliable_mq.retry import Reject, RetryPolicy
from reliable_mq.settings import Settings

metadata = MetaData()
orders_table = Table(
    "demo_order", metadata, Column("id", Integer, primary_key=True), Column("item", String(50))
)
charges_table = Table(
    "demo_charge",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("order_id", Integer, nullable=False),
)


class Order(BaseModel):
    """The payload of the demo's messages."""

    id: int
    item: str


class Demo:
    """A shop and its billing in one process."""

    def __init__(self, folder: Path) -> None:
        self.mq = ReliableMQ(
            Settings(broker_url="sql://", database_url=f"sqlite:///{folder / 'demo.db'}")
        )
        self.orders = self.mq.topic("orders", Order, partitions=2)
        self.stock_is_mended = False
        retry = RetryPolicy(max_attempts=3, initial_delay=1.0, jitter=0)
        self.mq.handler(self.orders, group="billing", ordered=True, retry=retry)(self.charge)

    def charge(self, order: Order, session: Session, delivery: Delivery) -> None:
        """Fail once for the coffee machine, and for good for the unicorn until it is mended."""
        if order.item == "coffee machine" and delivery.attempt == 1:
            raise ConnectionError("the bank did not answer")
        if order.item == "unicorn" and not self.stock_is_mended:
            raise Reject("there are no unicorns")
        session.execute(insert(charges_table).values(order_id=order.id))

    def place(self, number: int, item: str, *, twice: bool = False) -> None:
        """Store an order and its message in one transaction."""
        with self.mq.transaction() as session:
            session.execute(insert(orders_table).values(id=number, item=item))
            order = Order(id=number, item=item)
            message = self.mq.publish(self.orders, order, key=item)
            if twice:
                self.mq.publish(self.orders, order, key=item, message_id=message.id)

    def charges(self) -> list[int]:
        """Return the ids of the orders that were charged."""
        with self.mq.transaction() as session:
            query = select(charges_table.c.order_id).order_by(charges_table.c.id)
            return list(session.scalars(query))


def run_demo() -> bool:
    """Run the demo and explain it; False if anything was not as promised."""
    logging.getLogger("reliable_mq").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="reliable-mq-demo-") as folder:
        demo = Demo(Path(folder))
        with demo.mq:
            return _tell(demo)


def _tell(demo: Demo) -> bool:
    mq = demo.mq
    _say("1", "Four orders are placed; each order and its message in one transaction.")
    with mq.transaction() as session:
        metadata.create_all(session.connection())
    demo.place(1, "book")
    demo.place(2, "coffee machine")
    demo.place(3, "lamp", twice=True)
    demo.place(4, "unicorn")
    _say("2", "A fifth one fails before its commit: neither its order nor its message exists.")
    try:
        with mq.transaction() as session:
            session.execute(insert(orders_table).values(id=5, item="ghost"))
            mq.publish(demo.orders, Order(id=5, item="ghost"), key="ghost")
            raise RuntimeError("the shop crashed")
    except RuntimeError:
        pass
    _show("outbox, waiting", mq.status().outbox.pending)
    _say("3", "Relay and consumer run until nothing moves. The lamp's message was sent twice.")
    counts = mq.run_until_idle()
    print_table(
        ("sent", "handled", "duplicates", "retried", "dead letters"),
        [(counts.sent, counts.handled, counts.duplicates, counts.retried, counts.dead_lettered)],
    )
    _say("4", "The coffee machine failed at first and waits in the store for its next attempt.")
    again = _until_no_retry_waits(demo)
    _show("handled at the second attempt", again)
    _show("charged so far", demo.charges())
    _say("5", "The unicorn cannot be charged. It is a dead letter, with its cause:")
    letters = mq.dead_letters()
    print_table(
        ("id", "group", "attempts", "cause"),
        [(one.id, one.group, one.attempts, one.cause) for one in letters],
    )
    _say("6", "Somebody breeds unicorns, and the dead letter is replayed, twice by mistake.")
    demo.stock_is_mended = True
    replays = [mq.replay(letters[0].id), mq.replay(letters[0].id)] if letters else []
    _show("replayed", replays)
    mq.run_until_idle()
    charged = sorted(demo.charges())
    _show("charged in the end, each order once", charged)
    right = charged == [1, 2, 3, 4] and counts.duplicates == 1 and replays == [True, False]
    _say("OK" if right else "!!", "Nothing lost, nothing twice." if right else "That is wrong.")
    return right


def _until_no_retry_waits(demo: Demo) -> int:
    """Run with the retries that come due; return how many messages that handled."""
    handled = 0
    for _ in range(100):
        handled += demo.mq.run_until_idle().handled
        if not any(group.retries for group in demo.mq.status().groups.values()):
            break
    return handled


def _say(mark: str, text: str) -> None:
    console.print(f"\n[bold cyan]{mark}[/bold cyan]  {text}", highlight=False)


def _show(label: str, value: object) -> None:
    console.print(f"   {label}: [bold]{escape(str(value))}[/bold]", highlight=False)

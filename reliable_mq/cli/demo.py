"""The whole chain on one temporary SQLite file, with a failure, a duplicate and a dead letter."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel
from sqlalchemy import Column, Integer, MetaData, String, Table, insert, select
from sqlalchemy.orm import Session

from reliable_mq.app import ReliableMQ
from reliable_mq.cli.output import print_table, say
from reliable_mq.message import Delivery
from reliable_mq.retry import Reject, RetryPolicy
from reliable_mq.settings import PREFIX, Settings
from reliable_mq.status import Counts

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

_PATIENCE = 30.0


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
        self.unicorns_exist = False
        retry = RetryPolicy(max_attempts=3, initial_delay=1.0, jitter=0)
        self.mq.handler(self.orders, group="billing", ordered=True, retry=retry)(self.charge)

    def charge(self, order: Order, session: Session, delivery: Delivery) -> None:
        """Fail once for the coffee machine, and for the unicorn until there are any."""
        if order.item == "coffee machine" and delivery.attempt == 1:
            raise ConnectionError("the bank did not answer")
        if order.item == "unicorn" and not self.unicorns_exist:
            raise Reject("there are no unicorns")
        session.execute(insert(charges_table).values(order_id=order.id))

    def create_tables(self) -> None:
        """Create the shop's tables; the library's come by themselves."""
        with self.mq.transaction() as session:
            metadata.create_all(session.connection())

    def place(self, number: int, item: str, *, twice: bool = False, crash: bool = False) -> None:
        """Store an order and its message in one transaction."""
        with self.mq.transaction() as session:
            session.execute(insert(orders_table).values(id=number, item=item))
            order = Order(id=number, item=item)
            message = self.mq.publish(self.orders, order, key=item)
            if twice:
                self.mq.publish(self.orders, order, key=item, message_id=message.id)
            if crash:
                raise _ShopCrashed

    def charges(self) -> list[int]:
        """Return the ids of the orders that were charged, in the order of the charges."""
        with self.mq.transaction() as session:
            query = select(charges_table.c.order_id).order_by(charges_table.c.id)
            return list(session.scalars(query))


class _ShopCrashed(Exception):
    """What the fifth order runs into."""


def run_demo() -> bool:
    """Run the demo and explain it; False if anything was not as promised."""
    # It must be the same for everybody, whatever the environment configures.
    for name in [name for name in os.environ if name.upper().startswith(PREFIX)]:
        del os.environ[name]
    logging.getLogger("reliable_mq").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="reliable-mq-demo-") as folder:
        demo = Demo(Path(folder))
        with demo.mq:
            return _tell(demo)


def _tell(demo: Demo) -> bool:
    demo.create_tables()
    waiting = _place_orders(demo)
    counts = _run(demo)
    charged = _wait_for_the_retry(demo)
    replays = _mend_the_dead_letter(demo)
    in_the_end = demo.charges()
    _show("charged in the end", in_the_end)
    right = (
        waiting == 5
        and counts.duplicates == 1
        and sorted(charged) == [1, 2, 3]
        and replays == [True, False]
        and sorted(in_the_end) == [1, 2, 3, 4]
    )
    _step("OK" if right else "!!", "Each once, none lost." if right else "That is wrong.")
    return right


def _place_orders(demo: Demo) -> int:
    _step("1", "Four orders are placed, each with its message in one transaction. The message")
    say("   about the lamp is published twice, as by a client that got no answer.")
    demo.place(1, "book")
    demo.place(2, "coffee machine")
    demo.place(3, "lamp", twice=True)
    demo.place(4, "unicorn")
    _step("2", "A fifth order fails before its commit: there is neither an order nor a message.")
    with suppress(_ShopCrashed):
        demo.place(5, "ghost", crash=True)
    waiting = demo.mq.status().outbox.pending
    _show("messages in the outbox", waiting)
    return waiting


def _run(demo: Demo) -> Counts:
    _step("3", "Relay and consumer run until nothing can move. The lamp is charged once; the")
    say("   coffee machine fails and waits for its next attempt; the unicorn is given up on,")
    say("   and a copy of its message goes to the topic orders.billing.dlq, as the sixth sent.")
    counts = demo.mq.run_until_idle()
    print_table(
        ("   sent", "handled", "duplicates", "retried", "dead letters"),
        [
            (
                f"   {counts.sent}",
                counts.handled,
                counts.duplicates,
                counts.retried,
                counts.dead_lettered,
            )
        ],
    )
    _show("charged", demo.charges())
    return counts


def _wait_for_the_retry(demo: Demo) -> list[int]:
    _step("4", "A second later the coffee machine's next attempt is due.")
    deadline = time.monotonic() + _PATIENCE
    while any(group.retries for group in demo.mq.status().groups.values()):
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
        demo.mq.run_until_idle()
    charged = demo.charges()
    _show("charged", charged)
    return charged


def _mend_the_dead_letter(demo: Demo) -> list[bool]:
    _step("5", "The unicorn lies with the dead letters, whole and with its cause.")
    letters = demo.mq.dead_letters()
    print_table(
        ("   id", "group", "attempts", "cause"),
        [(f"   {one.id}", one.group, one.attempts, one.cause) for one in letters],
    )
    _step("6", "Somebody breeds unicorns. The dead letter is replayed, twice by mistake.")
    demo.unicorns_exist = True
    replays = [demo.mq.replay(one.id) for one in letters for _ in range(2)]
    _show("replayed", replays)
    demo.mq.run_until_idle()
    return replays


def _step(mark: str, text: str) -> None:
    say(f"\n{mark}  {text}")


def _show(label: str, value: object) -> None:
    say(f"   {label}: {value}")

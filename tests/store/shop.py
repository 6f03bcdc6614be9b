"""A small business to publish from, and what ended up in the outbox."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, String, event, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from reliable_mq.message import Message
from reliable_mq.store import Store, outbox


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    customer: Mapped[str] = mapped_column(String(50))


def message(name: str, *, body: bytes = b"{}") -> Message:
    return Message(id=name, topic="orders", key="ann", body=body)


def publish(store: Store, target: Any, *names: str) -> None:
    for name in names:
        outbox.append(store, target, message(name))


def stored(store: Store) -> list[str]:
    """The ids of the messages in the outbox, by their numbers."""
    table = store.tables.outbox
    with store.engine.connect() as connection:
        return list(connection.execute(select(table.c.message_id).order_by(table.c.id)).scalars())


def orders(store: Store) -> int:
    with store.engine.connect() as connection:
        return connection.execute(select(func.count()).select_from(Order)).scalar_one()


@contextmanager
def inserts(engine: Engine, store: Store) -> Any:
    """Collect the rows of each INSERT into the outbox: one list per statement."""
    seen: list[int] = []

    def before(
        connection: Connection, cursor: Any, statement: str, parameters: Any, *_: Any
    ) -> None:
        if statement.startswith("INSERT") and store.tables.outbox.name in statement:
            seen.append(len(parameters) if isinstance(parameters, list) else 1)

    event.listen(engine, "before_cursor_execute", before)
    try:
        yield seen
    finally:
        event.remove(engine, "before_cursor_execute", before)


@contextmanager
def listening(session: Session, name: str, callback: Callable[..., None]) -> Any:
    """Have *callback* called on an event of *session* in the block."""
    event.listen(session, name, callback)
    try:
        yield
    finally:
        event.remove(session, name, callback)

"""What the handlers of the effectively-once rows do: one INSERT of the application's own."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import BigInteger, Column, Engine, Identity, Integer, MetaData, Table, Text, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

TABLE = "bench_effects"
_BIG = BigInteger().with_variant(Integer, "sqlite")  # the only type that it numbers by itself
effects = Table(
    TABLE,
    MetaData(),
    Column("id", _BIG, Identity(), primary_key=True),
    Column("n", Integer, nullable=False),
    Column("customer", Text, nullable=False),
    Column("amount", Integer, nullable=False),
)


class Base(DeclarativeBase):
    """Of the mapped class."""


class Effect(Base):
    """The same table, for the ORM."""

    __tablename__ = TABLE
    id: Mapped[int] = mapped_column(_BIG, Identity(), primary_key=True)
    n: Mapped[int]
    customer: Mapped[str] = mapped_column(Text)
    amount: Mapped[int]


def values_of(order: dict[str, Any]) -> dict[str, Any]:
    """Return the row of a message."""
    return {"n": int(order["n"]), "customer": order["customer"], "amount": int(order["amount"])}


def wait_for_rows(engine: Engine, count: int) -> None:
    """Return once *count* effects are committed."""
    look = text(f"SELECT count(*) FROM {TABLE}")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        while int(connection.execute(look).scalar_one()) < count:
            time.sleep(0.002)

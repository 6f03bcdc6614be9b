"""What handlers of these tests do: leave an effect, in a table that would show it twice."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from sqlalchemy import Column, Engine, Integer, MetaData, String, Table, insert, select

metadata = MetaData()
effect = Table(
    "effect",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("what", String(200), nullable=False),
)


class Order(BaseModel):
    """A payload that refuses most bodies."""

    id: int


def leave(session: Any, what: object) -> None:
    """Write an effect into the handler's transaction."""
    session.execute(insert(effect).values(what=str(what)))


def effects(engine: Engine) -> list[str]:
    """Return the committed effects in their order."""
    with engine.connect() as connection:
        return list(connection.scalars(select(effect.c.what).order_by(effect.c.id)))

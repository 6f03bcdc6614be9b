"""A web service that publishes from its request's own AsyncSession, and consumes beside it.

    uvicorn examples.webservice.app:app

The relay and the async handler run on the web server's event loop and threads between start and
stop of the application (its lifespan). The engine belongs to the application.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI
from pydantic import BaseModel
from sqlalchemy import String, func, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from reliable_mq import ReliableMQ, Settings


class Base(DeclarativeBase):
    """The application's tables."""


class OrderRow(Base):
    """What a customer ordered."""

    __tablename__ = "web_order"

    id: Mapped[int] = mapped_column(primary_key=True)
    customer: Mapped[str] = mapped_column(String(100))


class Shipment(Base):
    """What the handler did about it."""

    __tablename__ = "web_shipment"

    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int]


class Order(BaseModel):
    """The message."""

    id: int
    customer: str


class NewOrder(BaseModel):
    """The request's body."""

    customer: str


engine = create_async_engine(os.environ.get("WEB_DATABASE_URL", "sqlite+aiosqlite:///web.db"))
sessions = async_sessionmaker(engine, expire_on_commit=False)
mq = ReliableMQ(
    Settings(broker_url=os.environ.get("WEB_BROKER_URL", "sql://")),
    async_engine=engine,
    async_session_factory=sessions,
)
orders = mq.topic("web.orders", Order)


@mq.handler(orders, group="shipping", timeout=10)
async def ship(order: Order, session: AsyncSession) -> None:
    """Awaits like any other coroutine of the application; its writes are committed once."""
    session.add(Shipment(order_id=order.id))


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Create the tables; run relay and handlers while the application serves."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with mq.running():
        yield
    await mq.aclose()
    await engine.dispose()


app = FastAPI(lifespan=lifespan)


async def get_session() -> AsyncIterator[AsyncSession]:
    """Give each request a session in a transaction that its end commits."""
    async with sessions() as session, session.begin():
        yield session


DbSession = Annotated[AsyncSession, Depends(get_session, scope="function")]


@app.post("/orders", status_code=201)
async def place_order(order: NewOrder, session: DbSession) -> Order:
    """Store the order and its message in the request's transaction."""
    row = OrderRow(customer=order.customer)
    session.add(row)
    await session.flush()
    placed = Order(id=row.id, customer=row.customer)
    mq.publish(orders, placed, key=row.customer, session=session)
    return placed


@app.get("/shipments")
async def count_shipments(session: DbSession) -> int:
    """Return how many orders were shipped."""
    return await session.scalar(select(func.count()).select_from(Shipment)) or 0

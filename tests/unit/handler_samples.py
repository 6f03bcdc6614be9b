"""Handlers whose annotations are strings, and names that exist for type checkers only."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
    from sqlalchemy.orm import Session

    from reliable_mq.message import Delivery, Message

    class OnlyForTypeCheckers(BaseModel): ...


class Order(BaseModel):
    id: int
    customer: str = "ann"


def everything_sync(
    order: Order, session: Session, connection: Connection, message: Message, delivery: Delivery
) -> None: ...


async def everything_async(
    order: Order, session: AsyncSession, connection: AsyncConnection, delivery: Delivery | None
) -> None: ...


def raw_message(message: Message) -> None: ...


def unknown_payload(order: OnlyForTypeCheckers) -> None: ...


def unknown_optional(order: Order, extra: OnlyForTypeCheckers | None = None) -> None: ...


def unknown_required(order: Order, extra: OnlyForTypeCheckers) -> None: ...


def quoted(orders: list[Order], session: Session) -> None: ...


def logged(function: Any) -> Any:
    """A decorator written in another module than the handlers it is used on."""

    @functools.wraps(function)
    def wrapper(*args: object, **kwargs: object) -> object:
        return function(*args, **kwargs)

    return wrapper


class Service:
    def handle(self, order: Order, session: Session) -> None: ...

    async def handle_async(self, order: Order, session: AsyncSession) -> None: ...

    @classmethod
    def handle_class(cls, order: Order) -> None: ...

    @staticmethod
    def handle_static(order: Order, session: Session) -> None: ...

    @staticmethod
    async def handle_async_static(order: Order, session: AsyncSession) -> None: ...


class Sync:
    def __call__(self, order: Order, session: Session) -> None: ...


class Async:
    async def __call__(self, order: Order, session: AsyncSession) -> None: ...

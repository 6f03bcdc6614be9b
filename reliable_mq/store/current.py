"""The transactions that the running code is inside of, so that ``publish`` finds the right one.

A stack in a context variable: tasks and ``asyncio.to_thread`` inherit it, other threads do not.
It is shared by every ReliableMQ of the process; what tells them apart is the database.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

from reliable_mq.errors import NoTransactionError

Target: TypeAlias = Session | Connection | AsyncSession | AsyncConnection


class Place(Protocol):
    """Whatever knows its database: a :class:`~reliable_mq.store.Store`."""

    @property
    def identity(self) -> Hashable:
        """What is equal for the same database."""
        ...


@dataclass(eq=False, slots=True)
class Entry:
    """One transaction on the stack. ``ended`` outlives it in the contexts of tasks it started."""

    identity: Hashable
    target: Target
    ended: bool = field(default=False)

    def end(self) -> None:
        """Say that nothing can join the transaction any more. Idempotent, from any thread."""
        self.ended = True


_stack: ContextVar[tuple[Entry, ...]] = ContextVar("reliable_mq_transactions", default=())


@contextmanager
def entered(place: Place, target: Target) -> Iterator[Entry]:
    """Make *target*, a transaction on the database of *place*, the innermost in the block."""
    entry = Entry(place.identity, target)
    _stack.set((*_stack.get(), entry))
    try:
        yield entry
    finally:
        entry.end()
        # Not by a token: a fixture or a framework may leave in another context than it entered.
        _stack.set(tuple(other for other in _stack.get() if other is not entry))


def innermost(place: Place) -> Entry | None:
    """Return the innermost entry on the database of *place*, ended or not, or None."""
    for entry in reversed(_stack.get()):
        if entry.identity == place.identity:
            return entry
    return None


def required(place: Place) -> Target:
    """Return the innermost transaction on the database of *place*.

    Raises ``NoTransactionError`` where there is none or where it has ended: a message must not
    get into an outer transaction that its author did not mean.
    """
    entry = innermost(place)
    if entry is None:
        raise NoTransactionError(
            "publish() was called outside a transaction: pass session=, or call it inside "
            "'with mq.transaction()' or a handler; publish_direct() sends without one"
        )
    if entry.ended:
        raise NoTransactionError(
            "the transaction this code was started in has ended: a task or callback that outlives "
            "its handler publishes in a 'with mq.transaction()' of its own"
        )
    return entry.target

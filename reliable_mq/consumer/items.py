"""What moves inside a consumer: an :class:`Item` per delivery, a :class:`Result` for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, TypeAlias

from reliable_mq.adapter import Received
from reliable_mq.message import Delivery, Message
from reliable_mq.retry import Decision
from reliable_mq.store.retries import Waiting
from reliable_mq.wire import Limits, RawHeaders, decode

if TYPE_CHECKING:
    from reliable_mq.consumer.ledger import Progress

OVERHEAD = 512
"""Bytes that a waiting delivery costs beside its body and headers, roughly."""


@dataclass(frozen=True, slots=True)
class Failed:
    """One attempt ended in an error; *decision* is the policy's answer."""

    cause: str
    attempt: int
    decision: Decision


@dataclass(slots=True, eq=False)
class Item:
    """One delivery from the broker, decoded as far as no handler is needed for it."""

    received: Received
    message: Message
    headers: RawHeaders
    fault: str | None
    stable_id: bool
    size: int
    received_at: datetime
    collisions: int = 0
    """How often in a row it met a deadlock, a lock or a store that is down."""
    attempts: int = 0
    """Made so far, of a message that is too large to wait for the next one in the store."""
    failed: Failed | None = None
    """Of an at-most-once handler: it ran, and must not run again; the failure is to be kept."""
    progress: Progress | None = None
    """Of an exactly-once handler: how far it is, which only this process knows."""

    def delivery(self, group: str, attempt: int) -> Delivery:
        """Return what the handler sees of attempt number *attempt*."""
        return Delivery(
            message=self.message,
            group=group,
            attempt=attempt,
            redelivered=self.received.redelivered,
            received_at=self.received_at,
        )


def make_item(received: Received, limits: Limits, now: datetime) -> Item:
    """Return the item of *received*, which came *now*. Never raises."""
    raw = received.raw
    decoded = decode(raw, limits)
    return Item(
        received,
        decoded.message,
        raw.headers,
        decoded.fault,
        decoded.stable_id,
        decoded.size + OVERHEAD,
        now,
    )


def make_items(deliveries: Sequence[Received], limits: Limits) -> list[Item]:
    """Return the items of what came together. Never raises."""
    now = datetime.now(UTC)
    return [make_item(one, limits, now) for one in deliveries]


class Ended(Enum):
    """How a delivery left our hands: each of these is durable, so it is acknowledged."""

    HANDLED = "handled"
    DUPLICATE = "duplicate"
    PARKED = "parked"
    RETRIED = "retried"
    DEAD = "dead-lettered"
    STALE = "stale"
    """Another attempt at the same retry row came first; nothing of ours was kept."""


@dataclass(frozen=True, slots=True)
class Again:
    """Nothing was decided: the same delivery again in *delay* seconds, not an attempt.

    ``store_down`` says that the database cannot be reached.
    """

    delay: float
    store_down: bool = False


Result: TypeAlias = Ended | Again


@dataclass(slots=True)
class Work:
    """What one worker takes at a time: deliveries in order, or one retry row.

    ``begun`` is how many of the deliveries it has begun with; from the others an idle worker may
    take some away. ``keys`` are those that nobody else works on meanwhile.
    """

    items: list[Item] = field(default_factory=list)
    waiting: Waiting | None = None
    keys: list[str] = field(default_factory=list)
    begun: int = 0

    @property
    def left(self) -> int:
        """How many deliveries were not begun."""
        return len(self.items) - self.begun

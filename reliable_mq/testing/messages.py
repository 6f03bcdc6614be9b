"""Messages for unit tests: made by hand, or caught on their way into the outbox."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from reliable_mq.app import ReliableMQ
from reliable_mq.clock import SystemClock
from reliable_mq.message import Delivery, HeaderValue, Message, Topic
from reliable_mq.publishing import build_message
from reliable_mq.store import outbox

if TYPE_CHECKING:
    from reliable_mq.app import AnySession


def make_message(
    payload: Any = None,
    *,
    topic: Topic[Any] | str = "topic",
    key: str | None = None,
    headers: Mapping[str, HeaderValue] | None = None,
    message_id: str | None = None,
    content_type: str | None = None,
) -> Message:
    """Return the message that ``publish`` would make of *payload*."""
    name, type_ = (topic.name, topic.payload) if isinstance(topic, Topic) else (topic, None)
    return build_message(
        name,
        payload,
        payload_type=type_,
        key=key,
        headers=headers,
        message_id=message_id,
        content_type=content_type,
        clock=SystemClock(),
        max_message_bytes=1_000_000,
        max_header_count=100,
        max_header_bytes=65_536,
    )


def make_delivery(
    message: Message | None = None,
    *,
    group: str = "group",
    attempt: int = 1,
    redelivered: bool = False,
    received_at: datetime | None = None,
) -> Delivery:
    """Return a delivery to hand to a handler function directly."""
    return Delivery(
        message=make_message() if message is None else message,
        group=group,
        attempt=attempt,
        redelivered=redelivered,
        received_at=received_at or datetime.now(UTC),
    )


@contextmanager
def capture(mq: ReliableMQ) -> Iterator[list[Message]]:
    """Collect what *mq* publishes in the block instead of storing it: no database is touched.

    Messages are built and checked as always; whether a transaction is open is not asked. For
    one thread at a time.
    """
    caught: list[Message] = []
    before = mq._store_message
    mq._store_message = lambda message, session: caught.append(message)  # type: ignore[method-assign]
    try:
        yield caught
    finally:
        mq._store_message = before  # type: ignore[method-assign]


def pending(session: AnySession) -> list[Message]:
    """Return what was published into *session*'s transaction and is not written to it yet."""
    return outbox.pending(session)

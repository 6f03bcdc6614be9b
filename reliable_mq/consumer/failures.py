"""What is written when an attempt failed: a retry row or a dead letter, exactly once."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from sqlalchemy import Connection, select

from reliable_mq.message import HeaderValue, Message, new_message_id
from reliable_mq.names import MAX_HEADER_NAME_BYTES
from reliable_mq.settings import Settings
from reliable_mq.store import outbox
from reliable_mq.store.dead_letters import DeadLetters
from reliable_mq.store.inbox import Inbox
from reliable_mq.store.retries import Retries, Waiting
from reliable_mq.store.texts import clean
from reliable_mq.store.times import from_micros
from reliable_mq.wire import (
    ORIGIN_ATTEMPTS,
    ORIGIN_CAUSE,
    ORIGIN_DIED_AT,
    ORIGIN_GROUP,
    ORIGIN_ID,
    ORIGIN_TOPIC,
    RESERVED_PREFIX,
    TRACEPARENT,
    TRUNCATED,
    RawHeaders,
    format_time,
    header_bytes,
)

if TYPE_CHECKING:
    from reliable_mq.store import Store

_ROOM_FOR_OURS = 2560
"""Bytes kept free for the headers that name a dead letter's origin and the message itself."""

_CAUSE_ON_THE_WIRE = 1024
"""Bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A message one group could not handle: where it stands, and why."""

    group: str
    message: Message
    headers: RawHeaders
    attempts: int
    cause: str
    replays: int = 0


class FailureBook:
    """Writes failures in the caller's transaction. Stateless."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store = store
        self._settings = settings
        self._inbox = Inbox(store)
        self._retries = Retries(store)
        self._dead_letters = DeadLetters(store)

    def wait(self, connection: Connection, failure: Failure, delay: float) -> None:
        """Keep a delivery for a later attempt; its inbox row is in this transaction too."""
        self._retries.add(
            connection,
            failure.group,
            failure.message,
            failure.headers,
            attempt=failure.attempts,
            delay=delay,
            cause=failure.cause,
            replays=failure.replays,
        )

    def give_up(self, connection: Connection, failure: Failure, *, conflict: bool = False) -> bool:
        """Keep a dead letter and send its copy; False where the same one is there already."""
        added = self._dead_letters.add(
            connection,
            failure.group,
            failure.message,
            failure.headers,
            attempts=failure.attempts,
            cause=failure.cause,
            conflict=conflict,
            replays=failure.replays,
        )
        if added and self._settings.dead_letter.publish:
            outbox.append(self._store, connection, self._dead_letter_message(connection, failure))
        return added

    def finish(self, connection: Connection, waiting: Waiting) -> bool:
        """Take the retry row away after a success; False: roll back, another came first."""
        if not self._retries.finish(connection, waiting):
            return False
        message = waiting.message
        self._inbox.mark_done(connection, waiting.group, message.topic, message.id)
        return True

    def postpone(
        self, connection: Connection, waiting: Waiting, *, attempt: int, delay: float, cause: str
    ) -> bool:
        """Let the retry row wait on; False as in :meth:`finish`."""
        return self._retries.postpone(
            connection, waiting, attempt=attempt, delay=delay, cause=cause
        )

    def bury(self, connection: Connection, waiting: Waiting, failure: Failure) -> bool:
        """Turn the retry row into a dead letter; False as in :meth:`finish`."""
        if not self._retries.finish(connection, waiting):
            return False
        self.give_up(connection, failure)
        return True

    def _dead_letter_message(self, connection: Connection, failure: Failure) -> Message:
        now = int(connection.execute(select(self._store.now())).scalar_one())
        return dead_letter_message(failure, self._settings, from_micros(now))


def dead_letter_message(failure: Failure, settings: Settings, died_at: datetime) -> Message:
    """Return what is sent to the dead-letter topic; over the limits it says what it left out."""
    message = failure.message
    headers: dict[str, HeaderValue] = {
        ORIGIN_ID: message.id,
        ORIGIN_TOPIC: message.topic,
        ORIGIN_GROUP: failure.group,
        ORIGIN_ATTEMPTS: str(failure.attempts),
        ORIGIN_CAUSE: _one_line(failure.cause, _CAUSE_ON_THE_WIRE),
        ORIGIN_DIED_AT: format_time(died_at),
    }
    body, truncated = message.body, []
    kept = {k: v for k, v in message.headers.items() if _may_travel_on(k)}
    if _fits(kept, settings):
        headers = {**kept, **headers}
    else:
        truncated.append("headers")
    if len(body) > settings.max_message_bytes:
        body = b""
        truncated.append("body")
    if truncated:
        headers[TRUNCATED] = ",".join(truncated)
    return Message(
        id=new_message_id(),
        topic=settings.dead_letter.topic_for(message.topic, failure.group),
        key=message.key,
        body=body,
        headers=headers,
        content_type=message.content_type,
    )


def _may_travel_on(name: str) -> bool:
    # A dead letter of a dead letter names its own origin, not the first one's.
    folded = name.lower()
    return folded != TRACEPARENT and not folded.startswith(RESERVED_PREFIX)


def _fits(headers: dict[str, HeaderValue], settings: Settings) -> bool:
    size = sum(len(name) + len(header_bytes(value)) for name, value in headers.items())
    # A name that came as bytes of no text is longer now that it is one.
    if any(len(name.encode()) > MAX_HEADER_NAME_BYTES for name in headers):
        return False
    return (
        len(headers) + 12 <= settings.max_header_count
        and size + _ROOM_FOR_OURS + _CAUSE_ON_THE_WIRE <= settings.max_header_bytes
    )


def _one_line(text: str, max_bytes: int) -> str:
    return clean(" ".join(text.split()), max_bytes)

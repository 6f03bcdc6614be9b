"""What is written when an attempt failed: a retry row or a dead letter, exactly once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING

from sqlalchemy import Connection, select

from reliable_mq.message import NO_HEADERS, HeaderValue, Message, fingerprint, new_message_id
from reliable_mq.names import MAX_HEADER_NAME_BYTES
from reliable_mq.settings import Settings
from reliable_mq.store import outbox
from reliable_mq.store.codec import pack_pairs
from reliable_mq.store.dead_letters import DeadLetters
from reliable_mq.store.inbox import Inbox
from reliable_mq.store.retries import Retries, Waiting
from reliable_mq.store.room import Shortage, shortage
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

_BESIDE = 65_536
"""Bytes that a row takes beside body, headers and cause, at most; and that the outbox row of its
copy, which has more headers, takes more than it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A message one group could not handle: where it stands, and why."""

    group: str
    message: Message
    headers: RawHeaders
    attempts: int
    cause: str
    replays: int = 0
    source: str = ""
    missing: tuple[str, ...] = ()
    """What the message lacks of what arrived: ``body``, ``headers`` or both."""
    whole: bytes | None = None
    """A fingerprint of the message with that; None where nothing is missing."""


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

    def shortage(
        self, connection: Connection, message: Message, headers: RawHeaders
    ) -> Shortage | None:
        """Return what of a message would not go into a row; None where it would as a whole."""
        beside = _BESIDE + 2 * self._settings.dead_letter.max_error_bytes
        return shortage(
            self._store, connection, body=message.body, headers=pack_pairs(headers), beside=beside
        )

    def short_of(self, shortage: Shortage, failure: Failure, *, stays: bool = False) -> Failure:
        """Return *failure* without what there is no room for; its cause says so first.

        Nothing is left out where it *stays* in memory.
        """
        lacks = "waits in memory for room for" if stays else "incomplete: lacks"
        cause = f"{lacks} its {shortage}; it came from {failure.source}; {failure.cause}"
        noted = replace(failure, cause=clean(cause, self._settings.dead_letter.max_error_bytes))
        if stays:
            return noted
        # Not the fingerprint of the body itself: it may be the headers that are missing.
        whole = fingerprint(b"incomplete:" + failure.message.body)
        return replace(_without(noted, shortage.parts), whole=whole)

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
            whole=failure.whole,
        )
        if added:
            self._send_copy(connection, failure)
        return added

    def _send_copy(self, connection: Connection, failure: Failure) -> None:
        if not self._settings.dead_letter.publish:
            return
        now = int(connection.execute(select(self._store.now())).scalar_one())
        letter = dead_letter_message(failure, self._settings, from_micros(now))
        outbox.append(self._store, connection, letter)

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
        added = self._dead_letters.add_waiting(
            connection,
            waiting,
            attempts=failure.attempts,
            cause=failure.cause,
            replays=failure.replays,
        )
        if not self._retries.finish(connection, waiting):
            return False
        if added:
            # The row was moved, but its copy comes from here.
            found = self.shortage(connection, failure.message, failure.headers)
            self._send_copy(
                connection, failure if found is None else _without(failure, found.parts)
            )
        return True


def _without(failure: Failure, parts: tuple[str, ...]) -> Failure:
    message = failure.message
    if "body" in parts:
        message = replace(message, body=b"")
    if "headers" not in parts:
        return replace(failure, message=message, missing=parts)
    message = replace(message, headers=NO_HEADERS)
    return replace(failure, message=message, headers=(), missing=parts)


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
    body, truncated = message.body, set(failure.missing)
    kept = {k: v for k, v in message.headers.items() if _may_travel_on(k)}
    if _fits(kept, settings):
        headers = {**kept, **headers}
    else:
        truncated.add("headers")
    if len(body) > settings.max_message_bytes:
        body = b""
        truncated.add("body")
    if truncated:
        headers[TRUNCATED] = ",".join(sorted(truncated, reverse=True))
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

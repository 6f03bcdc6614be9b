"""An outbox row on its way out, rebuilt without trusting what is in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sqlalchemy import Column, ColumnElement, LargeBinary, Text, cast, type_coerce

from reliable_mq.errors import ReliableMQError
from reliable_mq.message import NO_HEADERS, HeaderValue, Message, message_of
from reliable_mq.store.codec import EMPTY, unpack_headers
from reliable_mq.store.store import Store
from reliable_mq.store.times import from_micros

RowKey = tuple[str, bytes]
"""Topic and key: what is sent in order."""

_TOPIC, _KEY = 3, 4
"""Places of the columns in a row, as the reader selects them."""


class UnreadableRowError(ReliableMQError):
    """What is in an outbox row is no message. It did not get there through this library."""


@dataclass(slots=True)
class Outgoing:
    """One row as it was read, nothing of it believed yet.

    ``key`` is None for a message that has no order. ``created_at`` is in microseconds since 1970
    by the database's clock.
    """

    id: int
    slot: int
    topic: str
    key: RowKey | None
    attempts: int
    created_at: int
    body: bytes
    headers: bytes
    values: tuple[Any, Any, Any, Any]
    """Message id, topic, content type and time, as they came."""
    made: Message | None = None

    def message(self) -> Message:
        """Return the message; raise :class:`UnreadableRowError` where there is none.

        Made when it is first asked for.
        """
        if self.made is None:
            self.made = self._make()
        return self.made

    def _make(self) -> Message:
        id_, topic, content_type, time = self.values
        try:
            return message_of(
                id_ if type(id_) is str else _text(id_),
                topic if type(topic) is str else _text(topic),
                None if self.key is None else self.key[1].decode(),
                bytes(self.body),
                _headers(self.headers),
                content_type if type(content_type) is str else _or_none(content_type),
                from_micros(time),
            )
        except Exception as error:
            text = f"the row cannot be read: {type(error).__name__}"
            raise UnreadableRowError(text) from error

    @property
    def message_id(self) -> str:
        """The message's id as text for people, whatever its bytes are."""
        return shown(self.values[0])


def outgoing(row: Sequence[Any], body: bytes, headers: bytes) -> Outgoing:
    """Return *row*, as the reader selects it, with *body* and packed *headers*. Never raises."""
    values: tuple[Any, ...] = tuple(row)
    id_, slot, message_id, topic, key, content_type, time, created_at, attempts = values[:9]
    shown_topic = shown(topic)
    return Outgoing(
        id_,
        slot,
        shown_topic,
        None if key is None else (shown_topic, bytes(key)),
        _number(attempts),
        _number(created_at),
        body,
        headers,
        (message_id, topic, content_type, time),
    )


def row_key(row: Sequence[Any]) -> RowKey | None:
    """Return the key of *row* as the reader selects it."""
    return None if row[_KEY] is None else (shown(row[_TOPIC]), bytes(row[_KEY]))


def raw_text(store: Store, column: Column[Any]) -> ColumnElement[Any]:
    """Return *column* as its bytes: a row of broken text must not break reading the others."""
    if store.dialect.name == "postgresql":
        # There it cannot be broken; without the type of ours only because that costs time.
        return type_coerce(column, Text).label(column.name)
    if store.dialect.name == "sqlite":
        return cast(column, LargeBinary).label(column.name)
    return type_coerce(column, LargeBinary).label(column.name)


def shown(value: str | bytes) -> str:
    """Return what :func:`raw_text` brought as text for people, whatever the bytes are."""
    return value if isinstance(value, str) else bytes(value).decode(errors="replace")


def _headers(packed: bytes) -> Mapping[str, HeaderValue]:
    # Some drivers have types of their own for bytes.
    packed = bytes(packed)
    return NO_HEADERS if packed == EMPTY else MappingProxyType(unpack_headers(packed))


def _or_none(value: str | bytes | None) -> str | None:
    return None if value is None else _text(value)


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else bytes(value).decode()


def _number(value: Any) -> int:
    # SQLite keeps any text in a column of integers.
    return value if isinstance(value, int) else 0

"""Whether a message is more than the database takes as a row: asked before it is written.

The errors that would come instead do not say so, or come with the loss of the connection, and
would come again for ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reliable_mq.errors import MessageTooLargeError
from reliable_mq.store.dialects import Room

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from reliable_mq.store.store import Store

_ALWAYS_FITS = 32_768
"""Bytes of body and headers. No server is set up for less, so that it need not be asked."""

_BESIDE = 16_384
"""Bytes that a message's other columns and the statement take, at most; but for its cause."""


@dataclass(frozen=True, slots=True)
class Shortage:
    """A row has to do without *parts*: ``body``, ``headers`` or both."""

    parts: tuple[str, ...]
    sizes: tuple[int, ...]
    """Bytes of the parts as they are."""
    room: Room

    def __str__(self) -> str:
        parts = " and ".join(
            f"{part} of {size} bytes" for part, size in zip(self.parts, self.sizes, strict=True)
        )
        return f"{parts}: the database takes {self.room.size} bytes at once ({self.room.limit})"


def shortage(
    store: Store, connection: Connection, *, body: bytes, headers: bytes, beside: int
) -> Shortage | None:
    """Return what cannot be written, the larger part first; None where everything can.

    *headers* are packed. *beside* is what the other columns and the statement take at most.
    """
    length = len(body) + len(headers)
    if length <= _ALWAYS_FITS:
        return None
    dialect = store.dialect
    room = dialect.room(connection)
    if 2 * length + beside <= room.size:
        return None  # in any form that the driver may give them
    values = {"body": body, "headers": headers}
    sizes = {part: dialect.size_of(connection, value) for part, value in values.items()}
    missing = []
    for part in sorted(values, key=lambda part: -sizes[part]):
        if sum(sizes.values()) + beside > room.size:
            missing.append(part)
            del sizes[part]
    if not missing:
        return None
    return Shortage(tuple(missing), tuple(len(values[part]) for part in missing), room)


def refuse_too_large(
    store: Store, connection: Connection, row: Mapping[str, Any], *, beside: int = _BESIDE
) -> None:
    """Raise ``MessageTooLargeError`` where the database does not take *row*, which is a message's.

    Nothing was done then, and the transaction on *connection* can go on.
    """
    found = shortage(store, connection, body=row["body"], headers=row["headers"], beside=beside)
    if found is not None:
        raise MessageTooLargeError(
            f"message {row['message_id']!r} of {row['topic']!r} does not fit, with its {found}; "
            "raise that limit, or keep large data elsewhere and send where it is"
        )

"""The tables, as SQLAlchemy Core objects. docs/tables.md explains each column to its readers."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    Identity,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    UniqueConstraint,
)

from reliable_mq.names import MAX_GROUP, MAX_KEY_BYTES, MAX_MESSAGE_ID_BYTES, MAX_TOPIC
from reliable_mq.store.columns import (
    BIG,
    BODY,
    ERROR_TEXT,
    HEADERS,
    SMALL,
    TIME,
    Identifier,
    short_bytes,
)

SCHEMA_VERSION = 1
OUTBOX_SLOTS = 64
RETRY_SLOTS = 8

_VACUUM_OFTEN = {
    "autovacuum_vacuum_scale_factor": 0.0,
    "autovacuum_vacuum_threshold": 5000,
    "autovacuum_vacuum_cost_delay": 0,
    "autovacuum_analyze_scale_factor": 0.0,
    "autovacuum_analyze_threshold": 50_000,
}
"""Every row of the outbox is deleted soon, and every read begins where dead rows would pile up."""

_OPTIONS: dict[str, Any] = {
    "mysql_engine": "InnoDB",
    "mariadb_engine": "InnoDB",
    "mysql_charset": "utf8mb4",
    "mariadb_charset": "utf8mb4",
    "sqlite_autoincrement": True,
}


def slot_of(key: str | None, message_id: str, slots: int) -> int:
    """Return the slot of a message: the same for all messages of a key, in every process."""
    return zlib.crc32((message_id if key is None else key).encode()) % slots


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """All tables of one prefix and schema."""

    outbox: Table
    outbox_held: Table
    inbox: Table
    retry: Table
    dead_letter: Table
    lease: Table
    version: Table
    topic_log: Table
    topic_partition: Table
    topic_cursor: Table

    @property
    def metadata(self) -> MetaData:
        """Return the MetaData they are part of."""
        return self.outbox.metadata

    def all(self) -> list[Table]:
        """Return every table, in the order of their making."""
        return [getattr(self, field.name) for field in fields(self)]


def build_tables(
    metadata: MetaData, *, dialect: str, prefix: str, schema: str | None = None
) -> Tables:
    """Return the tables for a database of this *dialect*, added to *metadata*.

    The dialects differ where a number must never be used twice: SQLite only promises that for
    an ``INTEGER PRIMARY KEY AUTOINCREMENT``, MariaDB and MySQL want a key that begins with it.
    """
    build = _Builder(metadata, dialect, prefix, schema)
    return Tables(
        outbox=build.outbox(),
        outbox_held=build.outbox_held(),
        inbox=build.inbox(),
        retry=build.retry(),
        dead_letter=build.dead_letter(),
        lease=build.lease(),
        version=build.version(),
        topic_log=build.topic_log(),
        topic_partition=build.topic_partition(),
        topic_cursor=build.topic_cursor(),
    )


class _Builder:
    def __init__(self, metadata: MetaData, dialect: str, prefix: str, schema: str | None) -> None:
        self._metadata = metadata
        self._dialect = dialect
        self._prefix = prefix
        self._schema = schema

    def _table(self, name: str, *items: Any, **options: Any) -> Table:
        options = {**_OPTIONS, **options}
        return Table(self._prefix + name, self._metadata, *items, schema=self._schema, **options)

    def _index(self, table: str, name: str, *columns: str) -> Index:
        return Index(f"{self._prefix}{table}_{name}", *columns)

    def _number(self, name: str) -> Column[int]:
        """A number drawn by the database in rising order and never twice."""
        if self._dialect == "sqlite":
            return Column(name, BIG, primary_key=True, autoincrement=True)
        if self._dialect == "postgresql":
            # A cached range per session would hand out 33 after another session's 64.
            return Column(name, BIG, Identity(cache=1), nullable=False)
        return Column(name, BIG, autoincrement=True, nullable=False)

    def _keys(self, number: str, key: tuple[str, ...]) -> list[Any]:
        """Make *key* the table's key, and *number* unique beside it."""
        if self._dialect == "sqlite":
            return [] if key == (number,) else [UniqueConstraint(*key)]
        if key == (number,):
            return [PrimaryKeyConstraint(number)]
        return [PrimaryKeyConstraint(*key), UniqueConstraint(number)]

    @staticmethod
    def _message() -> list[Column[Any]]:
        return [
            Column("message_id", Identifier(MAX_MESSAGE_ID_BYTES), nullable=False),
            Column("topic", Identifier(MAX_TOPIC), nullable=False),
            Column("message_key", short_bytes(MAX_KEY_BYTES)),
            Column("body", BODY, nullable=False),
            Column("headers", HEADERS, nullable=False),
            Column("content_type", Identifier(255)),
            Column("message_time", TIME, nullable=False),
        ]

    def _sendable(self) -> list[Any]:
        return [
            self._number("id"),
            Column("slot", SMALL, nullable=False),
            *self._message(),
            Column("created_at", TIME, nullable=False),
            Column("attempts", Integer, nullable=False, server_default="0"),
            Column("cause", ERROR_TEXT),
        ]

    def outbox(self) -> Table:
        return self._table(
            "outbox",
            *self._sendable(),
            Column("try_at", TIME),
            *self._keys("id", ("slot", "id")),
            postgresql_with=_VACUUM_OFTEN,
        )

    def outbox_held(self) -> Table:
        # Keeps the number it had in the outbox, to which it may return.
        columns = [
            Column("id", BIG, primary_key=True, autoincrement=False),
            *self._sendable()[1:],
        ]
        return self._table(
            "outbox_held",
            *columns,
            Column("held_at", TIME, nullable=False),
            self._index("outbox_held", "key", "topic", "message_key"),
        )

    def inbox(self) -> Table:
        return self._table(
            "inbox",
            Column("consumer_group", Identifier(MAX_GROUP), primary_key=True),
            Column("topic", Identifier(MAX_TOPIC), primary_key=True),
            Column("message_id", Identifier(MAX_MESSAGE_ID_BYTES), primary_key=True),
            Column("fingerprint", short_bytes(16), nullable=False),
            Column("received_at", TIME, nullable=False),
            Column("done_at", TIME),
            self._index("inbox", "done", "done_at"),
        )

    def retry(self) -> Table:
        return self._table(
            "retry",
            self._number("seq"),
            Column("consumer_group", Identifier(MAX_GROUP), nullable=False),
            *self._message(),
            Column("fingerprint", short_bytes(16), nullable=False),
            Column("slot", SMALL, nullable=False),
            Column("attempt", Integer, nullable=False),
            Column("due_at", TIME, nullable=False),
            Column("created_at", TIME, nullable=False),
            Column("cause", ERROR_TEXT),
            Column("replays", Integer, nullable=False, server_default="0"),
            *self._keys("seq", ("seq",)),
            UniqueConstraint("consumer_group", "topic", "message_id"),
            self._index("retry", "due", "consumer_group", "topic", "slot", "due_at"),
            self._index("retry", "key", "consumer_group", "topic", "message_key", "seq"),
        )

    def dead_letter(self) -> Table:
        return self._table(
            "dead_letter",
            self._number("id"),
            Column("consumer_group", Identifier(MAX_GROUP), nullable=False),
            *self._message(),
            Column("fingerprint", short_bytes(16), nullable=False),
            Column("attempts", Integer, nullable=False),
            Column("cause", ERROR_TEXT, nullable=False),
            Column("conflict", Boolean, nullable=False),
            Column("died_at", TIME, nullable=False),
            Column("replays", Integer, nullable=False, server_default="0"),
            *self._keys("id", ("id",)),
            UniqueConstraint("consumer_group", "topic", "message_id", "fingerprint"),
        )

    def lease(self) -> Table:
        return self._table(
            "lease",
            Column("kind", Identifier(340), primary_key=True),
            Column("name", Identifier(64), primary_key=True),
            Column("owner", Identifier(64)),
            Column("epoch", BIG, nullable=False, server_default="0"),
            Column("renewals", BIG, nullable=False, server_default="0"),
            Column("expires_at", TIME, nullable=False, server_default="0"),
        )

    def version(self) -> Table:
        return self._table(
            "version",
            Column("id", Integer, primary_key=True, autoincrement=False),
            Column("schema_version", Integer, nullable=False),
            Column("store_id", Identifier(36), nullable=False),
            Column("adapter", Identifier(64), nullable=False),
        )

    def topic_log(self) -> Table:
        # created_at, by the database's clock, is what retention counts from.
        return self._table(
            "topic_log",
            Column("partition", Integer, autoincrement=False, nullable=False),
            Column("log_offset", BIG, autoincrement=False, nullable=False),
            *self._message(),
            Column("created_at", TIME, nullable=False),
            PrimaryKeyConstraint("topic", "partition", "log_offset"),
        )

    def topic_partition(self) -> Table:
        return self._table(
            "topic_partition",
            Column("topic", Identifier(MAX_TOPIC), primary_key=True),
            Column("partition", Integer, primary_key=True, autoincrement=False),
            Column("partitions", Integer, nullable=False),
            Column("next_offset", BIG, nullable=False, server_default="0"),
            Column("first_offset", BIG, nullable=False, server_default="0"),
            Column("retention", TIME),
        )

    def topic_cursor(self) -> Table:
        # owner and epoch are those of the lease under which log_offset may be moved.
        return self._table(
            "topic_cursor",
            Column("consumer_group", Identifier(MAX_GROUP), primary_key=True),
            Column("topic", Identifier(MAX_TOPIC), primary_key=True),
            Column("partition", Integer, primary_key=True, autoincrement=False),
            Column("log_offset", BIG, nullable=False),
            Column("owner", Identifier(64)),
            Column("epoch", BIG, nullable=False, server_default="0"),
        )
